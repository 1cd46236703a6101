"""``fromscratch eval``: measures of a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from fromscratch.cli.output import DeviceOption, JsonFlag, ModelArgument, print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a trained model.")


@app.callback()
def common() -> None:
    """Measure a trained model."""


@app.command()
def loss(
    model: ModelArgument,
    store: Annotated[Path, typer.Option(help="The token store to evaluate on.")],
    split: Annotated[str, typer.Option(help="Which split of it.")] = "validation",
    start: Annotated[int, typer.Option(min=0, help="First token of the slice.")] = 0,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to predict; all by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences at a time; the result is the same.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")] = "fp32",
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Loss, perplexity and bits per byte on a slice of a store.

    Example: fromscratch eval loss runs/baseline --store my-store --tokens 100000
    """
    from fromscratch.data.store import open_store
    from fromscratch.errors import UsageError
    from fromscratch.evaluation.loss import evaluate_loss, record_loss
    from fromscratch.training.hardware import find_hardware
    from fromscratch.training.held_out import TokenSlice
    from fromscratch.training.model_sources import open_model
    from fromscratch.training.setup import check_same_tokenizer

    if precision not in ("fp32", "tf32", "bf16", "fp16"):
        raise UsageError(f"--precision {precision}: must be fp32, tf32, bf16 or fp16")
    hardware = find_hardware(device)
    loaded = open_model(model, hardware)
    opened = open_store(store)
    check_same_tokenizer(opened, loaded.tokenizer)
    part = TokenSlice.of(opened.split(split), start=start, tokens=tokens)
    report = evaluate_loss(loaded.model, loaded.tokenizer, part, hardware, batch=batch, precision=precision)
    facts = {"store": str(store), "split": split, "start": start, "precision": precision}
    record_loss(loaded, report, **facts)
    everything = {"model": model, "step": loaded.step, **facts, **report.facts()}
    if as_json:
        print_json(everything)
    else:
        print_table([(name.replace("_", " "), value) for name, value in everything.items()])
