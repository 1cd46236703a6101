"""``fromscratch generate``."""

from typing import Annotated

import typer

from fromscratch.cli.output import DeviceOption, JsonFlag, note, print_json


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, RUN@latest, RUN@step-N, or a checkpoint.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Beginning of the text; empty starts a document.")] = "",
    tokens: Annotated[int, typer.Option(min=0, help="Most tokens to add.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that together reach this probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue a prompt.

    Example: fromscratch generate runs/baseline --prompt "Every effort moves you" --temperature 0.7
    """
    from fromscratch.evaluation.samples import continue_text
    from fromscratch.generation.sampling import Sampling
    from fromscratch.training.hardware import find_hardware
    from fromscratch.training.model_sources import open_model

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    loaded = open_model(model, find_hardware(device))
    prompt_tokens = len(loaded.tokenizer.encode(prompt))
    context_length = loaded.model.context_length
    if prompt_tokens > context_length:
        note(f"notice: the prompt has {prompt_tokens} tokens; the model sees only the last {context_length}")
    elif prompt_tokens + tokens > context_length:
        note(f"notice: past {context_length} tokens the model sees only the last {context_length}")
    text = continue_text(loaded.model, loaded.tokenizer, prompt, max_new_tokens=tokens, seed=seed, sampling=sampling)
    if as_json:
        print_json({"model": model, "step": loaded.step, "prompt": prompt, "text": text, "seed": seed})
    else:
        print(text)
