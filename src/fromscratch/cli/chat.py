"""``fromscratch chat``."""

import sys
from typing import Annotated

import typer

from fromscratch.cli.options import DeviceOption, ModelArgument
from fromscratch.cli.output import note

TemplateOption = Annotated[
    str,
    typer.Option(help="transcript (for base models), alpaca (for fine-tuned ones), or a TOML file of your own."),
]


def chat(
    model: ModelArgument,
    template: TemplateOption = "transcript",
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens in an answer.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens only.")] = 50,
    repetition_penalty: Annotated[float, typer.Option(help="Makes used tokens less likely; 1 is off.")] = 1.1,
    seed: Annotated[int, typer.Option(help="The same seed and messages give the same answers.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Talk with a model: a line in, an answer out, until the input ends.

    A base model continues a transcript; a fine-tuned one is given its own prompt format.

    Example: fromscratch chat gpt2 --temperature 0.7
    """
    from fromscratch.formats.model_sources import open_model
    from fromscratch.generation.conversation import Conversation, open_template
    from fromscratch.generation.sampling import Sampling
    from fromscratch.generation.texts import Settings
    from fromscratch.machine.hardware import find_hardware

    sampling = Sampling(temperature=temperature, top_k=top_k, repetition_penalty=repetition_penalty)
    chosen = open_template(template)
    loaded = open_model(model, find_hardware(device))
    settings = Settings(max_new_tokens=tokens, sampling=sampling, seed=seed)
    conversation = Conversation(loaded.model, loaded.tokenizer, chosen, settings)
    note("write a line and press Enter; end with Ctrl-D")
    for line in sys.stdin:
        if message := line.strip():
            conversation.answer(message, on_text=_show)
            print(flush=True)


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
