"""``fromscratch generate``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, ModelArgument
from fromscratch.cli.output import note, print_json, write_now

if TYPE_CHECKING:
    from fromscratch.formats.model_sources import LoadedModel
    from fromscratch.generation.texts import Continuation


TextArguments = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT]...", help="Start of a text, as with --prompt.")
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", help="Start of a text; repeatable. An empty prompt starts a document."),
]
MaxNewTokens = Annotated[int, typer.Option("--tokens", "--max-new-tokens", min=0, help="Maximum number of new tokens.")]


def generate(
    model: ModelArgument,
    text: TextArguments = None,
    prompts: Prompts = None,
    tokens: MaxNewTokens = 100,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 always selects the most probable token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample only from the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample only from the most probable tokens that together reach this probability."),
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Sample only from tokens of at least this fraction of the highest probability.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Lowers the probability of used tokens; 1 is off, 1.2 is strong.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same texts.")] = 0,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue one or more prompts.

    Example: fromscratch generate runs/baseline "Every effort moves you" --temperature 0.7 --n 3
    """
    from fromscratch.formats.model_sources import open_model
    from fromscratch.generation.generate import Settings
    from fromscratch.generation.sampling import Sampling
    from fromscratch.generation.texts import continue_prompts
    from fromscratch.machine.hardware import find_hardware

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    settings = Settings(max_new_tokens=tokens, sampling=sampling, seed=seed, stop=tuple(stop or ()))
    loaded = open_model(model, find_hardware(device))
    texts = [prompt for prompt in [*(text or []), *(prompts or [])] or [""] for _ in range(n)]
    for prompt in dict.fromkeys(texts):
        note_if_truncated(loaded, prompt, tokens)
    live = len(texts) == 1 and not as_json
    if live:
        write_now(texts[0])
    results = continue_prompts(
        loaded.model,
        loaded.tokenizer,
        texts,
        settings,
        on_text=lambda _row, text: write_now(text) if live else None,
    )
    if as_json:
        print_json(to_dict(model, loaded, results, seed))
    elif live:
        print()
    else:
        print("\n---\n".join(result.prompt + result.text for result in results))


def note_if_truncated(loaded: "LoadedModel", prompt: str, tokens: int) -> None:
    """Prints a notice if a text will exceed the model's context."""
    from fromscratch.generation.decoders import max_window

    prompt_tokens, context_length = len(loaded.tokenizer.encode(prompt)), max_window(loaded.model)
    if prompt_tokens > context_length:
        note(f"notice: the prompt has {prompt_tokens} tokens; the model sees only the last {context_length}")
    elif prompt_tokens + tokens > context_length:
        note(f"notice: after {context_length} tokens the model sees only the last {context_length}")


def to_dict(model: str, loaded: "LoadedModel", results: "list[Continuation]", seed: int) -> dict[str, Any]:
    """Returns the JSON output: the samples, and prompt and text of the first one at the top level."""
    samples = [{"prompt": r.prompt, "text": r.prompt + r.text, "tokens": r.tokens, "ended": r.ended} for r in results]
    first = {key: samples[0][key] for key in ("prompt", "text")}
    return {"model": model, "step": loaded.step, **first, "seed": seed, "samples": samples}
