"""One run in detail, and the check of its checkpoints and tokenizer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, problems_of, read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import Overview, overview, size_of
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import BEST, LATEST, checkpoints_in, step_of


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint as it is on the disk."""

    name: str
    step: int
    size_bytes: int
    problems: tuple[str, ...]
    """One sentence per missing or damaged file; empty if there is none."""
    latest: bool
    best: bool
    valid: bool
    """Whether a resume would use it."""


@dataclass(frozen=True)
class Details:
    """Everything that ``runs show`` prints except the config."""

    overview: Overview
    machine: dict[str, Any]
    checkpoints: tuple[CheckpointInfo, ...]
    evaluations: dict[str, dict[str, Any]]
    """By name; an unreadable file has the key ``problem``."""
    events: dict[str, int]
    """Count of each event."""
    outcomes: dict[str, int]
    """Count of recorded steps by ``StepOutcome``."""
    clipped: int
    nonfinite: int


def details_of(run: RunDirectory) -> Details:
    """Reads the records of a run; checks sizes of checkpoint files, not checksums."""
    outcomes: Counter[str] = Counter()
    clipped = nonfinite = 0
    for record in read_records(run.metrics):
        outcomes[str(record.get("outcome"))] += 1
        clipped += record.get("clipped") is True
        nonfinite += record.get("nonfinite") is True
    return Details(
        overview=overview(run),
        machine=_object_in(run.machine),
        checkpoints=tuple(list_checkpoints(run, checksums=False)),
        evaluations={path.stem: _object_in(path) for path in sorted(run.evaluations.glob("*.json"))},
        events=dict(Counter(str(record.get("event")) for record in read_records(run.events))),
        outcomes=dict(outcomes),
        clipped=clipped,
        nonfinite=nonfinite,
    )


def list_checkpoints(run: RunDirectory, *, checksums: bool) -> Iterator[CheckpointInfo]:
    """Yields every checkpoint, oldest first; ``checksums`` reads every byte."""
    links = {name: (run.checkpoints / name).resolve() for name in (LATEST, BEST)}
    for path in checkpoints_in(run.checkpoints):
        problems = tuple(_folder_problems(path, checksums=checksums))
        yield CheckpointInfo(
            name=path.name,
            step=step_of(path),
            size_bytes=size_of(path),
            problems=problems,
            latest=path.resolve() == links[LATEST],
            best=path.resolve() == links[BEST],
            valid=not problems,
        )


def other_problems(run: RunDirectory) -> list[str]:
    """Checks the tokenizer, a sealed folder like a checkpoint; one sentence per problem."""
    return list(_folder_problems(run.tokenizer, checksums=True)) if run.tokenizer.is_dir() else []


def _folder_problems(folder: Path, *, checksums: bool) -> Iterator[str]:
    """Checks a sealed folder and its manifest."""
    try:
        yield from problems_of(folder, checksums=checksums)
    except DataError as error:
        half_deleted = not (folder / MANIFEST).exists()
        yield f"{folder}: has no {MANIFEST}, so it is incomplete" if half_deleted else str(error)


def _object_in(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except DataError as error:
        return {"problem": str(error)}
