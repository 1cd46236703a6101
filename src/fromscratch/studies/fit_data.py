"""The results that a fit needs, one row each: from runs, a study, a CSV file, or the JSON of ``fit`` and ``bench``."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fromscratch.config.loading import read_run_config
from fromscratch.errors import UsageError
from fromscratch.models.costs import model_costs
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import observed_status, resolve_run
from fromscratch.runs.records import to_float
from fromscratch.runs.states import RunState
from fromscratch.session.comparison import differing_values
from fromscratch.studies.definition import load_study
from fromscratch.studies.jobs import StudyFolder, held_out_losses

COLUMNS = {
    "memory": ("micro_batch", "memory_bytes"),
    "batch": ("batch", "loss"),
    "scaling": ("tokens", "parameters", "loss"),
    "noise": ("batch", "squared_norm"),
}
"""Columns of each kind of fit; the last one is what the curve predicts."""
OPTIONAL = ("tokens", "parameters")
"""One of these two suffices."""
SHAPE = ("preset", "num_layers", "num_heads", "embedding_dim")
KEYS = {
    "batch": {"train.global_batch"},
    "scaling": {"data.tokens", "data.epochs", *(f"model.{name}" for name in SHAPE)},
}
"""Run-file keys that the runs of a fit may differ in."""
HARMLESS = {"train.seed", *(f"train.{name}_every" for name in ("evaluate", "sample", "checkpoint"))}


@dataclass
class Results:
    """Rows of numbers by column, with the place that each came from."""

    columns: dict[str, list[float]]
    labels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out, and what makes the rows hard to compare."""

    def add(self, label: str, row: dict[str, float]) -> None:
        """Appends a row that has a value for every column."""
        self.labels.append(label)
        for name, column in self.columns.items():
            column.append(row[name])


def read_results(kind: str, sources: Sequence[str], runs_dir: Path) -> Results:
    """Reads the rows of a fit.

    Args:
        kind: a key of ``COLUMNS``.
        sources: run names or paths, study files, CSV files with a head line, or, for memory, the JSON that
            ``fromscratch fit --json`` or ``bench --json`` printed.

    Raises:
        UsageError: a source does not exist, or lacks a column.
    """
    results = Results({name: [] for name in _present(kind, sources)})
    runs: list[RunDirectory] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.suffix == ".csv":
            _add_csv(results, path)
        elif path.suffix == ".json":
            _add_measurements(results, kind, path)
        elif kind not in KEYS:
            files = "a CSV file" if kind == "noise" else "a CSV file, or the JSON of 'fromscratch fit --json'"
            raise UsageError(f"study fit {kind}: {source}: give {files} with columns {', '.join(COLUMNS[kind])}")
        elif path.suffix == ".toml":
            runs += _runs_of_study(results, kind, path, runs_dir)
        else:
            runs.append(resolve_run(source, runs_dir))
    results.notes += _other_differences(kind, _add_runs(results, runs))
    return _without_constants(results)


def _present(kind: str, sources: Iterable[str]) -> list[str]:
    """The columns that all sources can have: a CSV file may lack one of two optional ones."""
    heads = [_head(path) for source in sources if (path := Path(source).expanduser()).suffix == ".csv"]
    columns = [name for name in COLUMNS[kind] if name not in OPTIONAL or all(name in head for head in heads)]
    if len(columns) < 2:
        raise UsageError(f"study fit {kind}: the CSV files need a column {' or '.join(COLUMNS[kind][:-1])} in common")
    return columns


def _add_csv(results: Results, path: Path) -> None:
    missing = [name for name in results.columns if name not in _head(path)]
    if missing:
        raise UsageError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(_head(path)) or 'none'}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            values = {}
            for name in results.columns:
                try:
                    values[name] = float(row[name] or "")
                except ValueError:
                    raise UsageError(f"{path}: line {number}: {name} = {row[name]!r} is not a number") from None
            results.add(f"{path.name}:{number}", values)


def _head(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV ({error})") from None


def _add_measurements(results: Results, kind: str, path: Path) -> None:
    """Adds the probes of ``fit --json``, or the rows of ``bench --json`` of one way to train."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from None
    rows = values.get("probes", values.get("rows")) if isinstance(values, dict) else None
    if kind != "memory" or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: only 'study fit memory' reads JSON, as 'fit --json' or 'bench --json' prints it")
    measured = [row for row in rows if to_float(row.get("peak_memory_bytes")) and to_float(row.get("micro_batch"))]
    ways = Counter(map(_way, measured))
    for row in measured:
        if _way(row) == ways.most_common(1)[0][0]:
            values = {"micro_batch": float(row["micro_batch"]), "memory_bytes": float(row["peak_memory_bytes"])}
            results.add(f"{path.name}: {_way(row) or 'probe'}", values)
    if unknown := len(rows) - len(measured):
        results.notes.append(f"{path}: {unknown} of {len(rows)} rows left out: memory ran out or was not measured")
    for way, count in ways.most_common()[1:]:
        results.notes.append(f"{path}: {count} rows left out: {way}; one fit is for one way to train")


def _way(row: dict[str, Any]) -> str:
    compiled = {True: "compiled", False: "eager"}.get(row.get("compile", ""), "")
    return ", ".join(filter(None, (str(row.get("recipe", "")), str(row.get("precision", "")), compiled)))


def _runs_of_study(results: Results, kind: str, path: Path, runs_dir: Path) -> Iterator[RunDirectory]:
    """The runs of the arms that change only what the fit is about."""
    folder = StudyFolder(load_study(path), runs_dir)
    for arm in folder.study.all_arms:
        if others := {change.partition(":")[0] for change in arm.changes} - KEYS[kind] - HARMLESS:
            results.notes.append(f"{path}: arm {arm.name} left out: it changes {', '.join(sorted(others))}")
        else:
            yield from (run for seed in arm.seeds if (run := folder.job(arm, seed).run).exists())


def _add_runs(results: Results, runs: Iterable[RunDirectory]) -> list[RunDirectory]:
    """Adds the runs that are done, with the held-out loss of their last step; returns them."""
    added = []
    for run in runs:
        status = observed_status(run)
        loss = held_out_losses(run).get(status.num_steps or -1)
        if status.state != RunState.DONE or loss is None or status.num_steps is None:
            why = f"it is {status.state}" if status.state != RunState.DONE else "its last step has no held-out loss"
            results.notes.append(f"run {run.name} left out: {why}")
            continue
        config = read_run_config(run.config)
        if config.tune:
            results.notes.append(f"run {run.name} left out: it tunes a model; fits are of pre-training")
            continue
        tokens = config.train.batch_sizes.before(status.num_steps) * config.model.context_length
        parameters = model_costs(config.model).parameters
        results.add(
            run.name,
            {"batch": config.train.global_batch, "tokens": tokens, "parameters": parameters, "loss": loss},
        )
        added.append(run)
    return added


def _other_differences(kind: str, runs: list[RunDirectory]) -> list[str]:
    """Warns of runs that differ in more than the fit is about."""
    different = set(differing_values({str(run.path): run for run in runs}))
    if others := sorted(different - KEYS.get(kind, set()) - HARMLESS):
        return [f"the runs differ in {', '.join(others)} as well; the fit cannot tell these effects apart"]
    return []


def _without_constants(results: Results) -> Results:
    """Leaves out an optional column that has one value only: it explains nothing."""
    for name in OPTIONAL:
        if len(set(results.columns.get(name, ()))) == 1 and len(results.columns) > 2:
            results.notes.append(f"{name} is the same in all rows ({results.columns.pop(name)[0]:,.0f}) and left out")
    return results
