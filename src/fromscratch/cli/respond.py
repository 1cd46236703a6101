"""``fromscratch respond``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, ModelArgument, QuietFlag
from fromscratch.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from fromscratch.finetuning.answers import AnswersReport


def respond(
    model: ModelArgument,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Instructions, such as RUN/split/test.json.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The answers, a JSON list of records.")],
    prompt_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="alpaca, phi3, chatml, a template or a TOML file; by default that of the model's tuning."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "--max-new-tokens", min=1, help="Maximum number of tokens in an answer.")
    ] = 256,
    temperature: Annotated[float, typer.Option(help="0 always selects the most probable token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample only from the k most probable tokens.")] = None,
    seed: Annotated[int, typer.Option(help="With a temperature: the same seed gives the same answers.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Number of prompts at a time.")] = 16,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Answer every instruction of a file, or those that an interrupted command left.

    The answers are in the form that 'fromscratch judge' reads; FILE.meta.json says which model gave them.

    Example: fromscratch respond runs/gpt2-instruct --data runs/gpt2-instruct/split/test.json --out answers.json
    """
    from fromscratch.finetuning.answers import respond as answer
    from fromscratch.finetuning.prompts import prompt_format_for
    from fromscratch.finetuning.records import RESPONSE, read_records
    from fromscratch.formats.model_sources import open_model
    from fromscratch.generation.generate import Settings
    from fromscratch.generation.sampling import Sampling
    from fromscratch.machine.hardware import find_hardware

    settings = Settings(tokens, Sampling(temperature=temperature, top_k=top_k), seed)
    file = read_records(data)
    loaded = open_model(model, find_hardware(device))
    form = prompt_format_for(loaded, prompt_format)
    if replaced := sum(RESPONSE in record for record in file.records):
        note(f"notice: {replaced:,} records of {data} hold a {RESPONSE}; {out} holds that of {loaded.name} instead")
    report = answer(
        loaded,
        file,
        out,
        form,
        settings,
        batch=batch,
        on_progress=lambda done, whole: note(f"answered {done:,} of {whole:,}", quiet=quiet),
    )
    print_report(report, loaded.model.context_length, as_json=as_json)


def print_report(report: "AnswersReport", context_length: int, *, as_json: bool) -> None:
    """Prints what was answered, and what the user should know of it."""
    if report.long_prompts:
        note(
            f"notice: {report.long_prompts:,} prompts do not fit into the context of {context_length:,} tokens "
            "together with an answer; the model saw only their ends"
        )
    if report.cut:
        note(f"notice: {report.cut:,} answers ended at the limit of tokens; --tokens allows more")
    figures = asdict(report)
    if as_json:
        print_json(figures)
    else:
        print_table([(name.replace("_", " "), value) for name, value in figures.items()])
