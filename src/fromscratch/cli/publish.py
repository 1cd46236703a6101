"""``fromscratch publish`` and ``fromscratch import``: export and import models."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fromscratch.cli.options import JsonFlag, ModelArgument
from fromscratch.cli.output import note, print_json, print_table


def publish(
    model: ModelArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="DIR|hf://owner/name", help="A folder, or a repository on the Hub.")
    ],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="native (GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen3; no code) or custom; native if possible.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, only list the files.")] = (False),
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    collection: Annotated[str | None, typer.Option(help="Add it to this collection on the Hub (its slug).")] = None,
    license_name: Annotated[str, typer.Option("--license", help="Licence of the weights, as the Hub names it.")] = (
        "apache-2.0"
    ),
    title: Annotated[str | None, typer.Option(help="Title of the model card.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Export a model with weights, tokenizer, configuration and model card, to a folder or the Hub.

    An upload is one commit, with the token of HF_TOKEN or 'hf auth login'.

    Example: fromscratch publish runs/baseline --to hf://me/my-gpt --yes
    """
    from fromscratch.formats.model_sources import open_model
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.publishing.publish import Destination, publish_model

    destination = Destination.of(to, private=private, collection=collection)
    loaded = open_model(model, find_hardware("cpu"), may_classify=True)
    report = publish_model(
        loaded, destination, format_name=format_name, license_name=license_name, title=title, upload=yes
    )
    if as_json:
        print_json(asdict(report))
        return
    print_table(report.files.items())
    if report.repository is None:
        note(f"{to}: {report.format} format")
    elif report.uploaded:
        note(f"{report.url}: {report.format} format, commit {report.commit}")
    else:
        note(f"nothing was uploaded; --yes uploads these files to hf://{report.repository} ({report.format} format)")


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A file or folder of weights, owner/name on the Hub, or gpt2[-medium...]."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    tokenizer: Annotated[str | None, typer.Option(help="gpt2, bytes or a path, if the source has none.")] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, if the checkpoint does not record them.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Convert a model of another program into our format; compares the logits before and after.

    Reads OpenAI's GPT-2; GPT-2, Llama, Mistral, Mixtral, Qwen2 and Qwen3 as transformers saves them; checkpoints of
    the book's model; nanoGPT's ckpt.pt. Executes no code of them.

    Example: fromscratch import gpt2 --out models/gpt2
    """
    from fromscratch.publishing.importing import import_model as convert

    report = asdict(convert(source, out, tokenizer=tokenizer, num_heads=heads))
    notes = report.pop("notes")
    if as_json:
        print_json(report | {"notes": notes})
        return
    report["largest_logit_difference"] = f"{report['largest_logit_difference']:.1e}"
    print_table([(name.replace("_", " "), value) for name, value in report.items() if value is not None])
    for line in notes:
        note(f"notice: {line}")
