"""``fromscratch chat``."""

import sys
from typing import Annotated

import typer

from fromscratch.cli.options import DeviceOption, ModelArgument
from fromscratch.cli.output import note, write_now

TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="transcript, alpaca, or a TOML file; by default the format of the model's tuning, else transcript."
    ),
]


def chat(
    model: ModelArgument,
    template: TemplateOption = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "--max-new-tokens", min=1, help="Maximum number of tokens in an answer.")
    ] = 100,
    temperature: Annotated[float, typer.Option(help="0 always selects the most probable token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample only from the k most probable tokens.")] = 50,
    repetition_penalty: Annotated[float, typer.Option(help="Lowers the probability of used tokens; 1 is off.")] = 1.1,
    seed: Annotated[int, typer.Option(help="The same seed and messages give the same answers.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Chat with a model: it answers every line of the input.

    The template is the prompt format: a base model needs a transcript, a fine-tuned model its own format.

    Example: fromscratch chat gpt2 --temperature 0.7
    """
    from fromscratch.formats.model_sources import open_model
    from fromscratch.generation.conversation import TRANSCRIPT, Conversation, open_template, template_of
    from fromscratch.generation.decoders import max_window
    from fromscratch.generation.generate import Settings
    from fromscratch.generation.sampling import Sampling
    from fromscratch.machine.hardware import find_hardware

    sampling = Sampling(temperature=temperature, top_k=top_k, repetition_penalty=repetition_penalty)
    chosen = None if template is None else open_template(template)
    loaded = open_model(model, find_hardware(device))
    if chosen is None:
        chosen = template_of(loaded.prompt_format) if loaded.prompt_format else open_template(TRANSCRIPT)
    settings = Settings(max_new_tokens=tokens, sampling=sampling, seed=seed)
    conversation = Conversation(loaded.model, loaded.tokenizer, chosen, settings)
    note("type a line and press Enter; Ctrl-D ends the chat")
    is_cut = False
    for line in sys.stdin:
        if message := line.strip():
            length, context = len(loaded.tokenizer.encode(conversation.prompt(message))), max_window(loaded.model)
            if length > context and not is_cut:
                note(f"notice: the conversation has {length:,} tokens; from now on the model sees the last {context:,}")
            is_cut = length > context
            conversation.answer(message, on_text=write_now)
            print(flush=True)
