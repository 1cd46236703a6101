"""Writes the numbers of a run for other tools. The run stays as it is."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fromscratch.errors import UsageError
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records, to_count, to_float
from fromscratch.runs.sinks import numbers_in, open_sink
from fromscratch.runs.states import Event, losses_by_weights

HELD_OUT = "held_out_loss"


def numbers_by_step(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """Yields the metrics in order, with the held-out loss where a step was evaluated; also steps with that alone."""
    evaluations = (record for record in read_records(run.events) if record.get("event") == Event.EVALUATION)
    held_out = {step: held_out_losses(record) for record in evaluations if (step := _step(record)) is not None}
    for record in read_records(run.metrics):
        step = _step(record)
        if step is None:
            continue
        for earlier in sorted(one for one in held_out if one < step):
            yield {"step": earlier, **held_out.pop(earlier)}
        yield {**record, **held_out.pop(step, {HELD_OUT: None})}
    for later in sorted(held_out):
        yield {"step": later, **held_out[later]}


def held_out_losses(evaluation: dict[str, Any]) -> dict[str, float | None]:
    """The losses of an ``evaluation`` event by the names they have in other tools."""
    others = {f"{HELD_OUT}_{name}": to_float(loss) for name, loss in losses_by_weights(evaluation).items()}
    return {HELD_OUT: to_float(evaluation.get("loss")), **others}


def export_csv(run: RunDirectory, out: Path) -> int:
    """Writes one row per step; returns their number. An unknown value is an empty cell.

    Raises UsageError if the file exists or cannot be written.
    """
    rows = list(numbers_by_step(run))
    columns = dict.fromkeys(key for row in rows for key in row)
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        _refuse_existing(out)
        with temporary.open("x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error
    return len(rows)


def export_to(tool: str, run: RunDirectory, out: Path | None) -> int:
    """Gives every step to a tool; returns their number.

    Args:
        out: a new folder; None for a tool that keeps its files itself.

    Raises UsageError if the folder exists already, or the tool's package is not installed.
    """
    if out is not None:
        _refuse_existing(out)
    sink, count = open_sink(tool, run.name, out or Path()), 0
    try:
        for row in numbers_by_step(run):
            sink.log(row["step"], numbers_in(row))
            count += 1
    finally:
        sink.close()
    return count


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UsageError(f"--out {out}: exists already; choose another one, or remove it")


def _step(record: dict[str, Any]) -> int | None:
    return to_count(record.get("step"))
