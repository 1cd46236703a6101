"""One run in detail, and the check of everything it keeps."""

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
class CheckpointFacts:
    """A checkpoint as it lies there."""

    name: str
    step: int
    size_bytes: int
    problems: tuple[str, ...]
    """What is wrong with its files; empty for a whole one."""
    latest: bool
    best: bool

    @property
    def valid(self) -> bool:
        """Whether a resume would take it."""
        return not self.problems


@dataclass(frozen=True)
class Details:
    """Everything that ``runs show`` says beside the config."""

    overview: Overview
    machine: dict[str, Any]
    checkpoints: tuple[CheckpointFacts, ...]
    evaluations: dict[str, dict[str, Any]]
    """By name; a file that cannot be read has the key ``problem``."""
    events: dict[str, int]
    """How many of each."""
    outcomes: dict[str, int]
    """How many steps on record were normal, clipped, not finite in one way or another, or spikes."""
    clipped: int
    nonfinite: int


def details_of(run: RunDirectory) -> Details:
    """Reads a run's records; of the checkpoints the sizes, not the checksums."""
    outcomes: Counter[str] = Counter()
    clipped = nonfinite = 0
    for record in read_records(run.metrics):
        outcomes[str(record.get("outcome"))] += 1
        clipped += record.get("clipped") is True
        nonfinite += record.get("nonfinite") is True
    return Details(
        overview=overview(run),
        machine=_object_in(run.machine),
        checkpoints=tuple(checkpoint_facts(run, checksums=False)),
        evaluations={path.stem: _object_in(path) for path in sorted(run.evaluations.glob("*.json"))},
        events=dict(Counter(str(record.get("event")) for record in read_records(run.events))),
        outcomes=dict(outcomes),
        clipped=clipped,
        nonfinite=nonfinite,
    )


def checkpoint_facts(run: RunDirectory, *, checksums: bool) -> Iterator[CheckpointFacts]:
    """Every checkpoint, oldest first; with ``checksums`` every byte is read."""
    links = {name: (run.checkpoints / name).resolve() for name in (LATEST, BEST)}
    for path in checkpoints_in(run.checkpoints):
        yield CheckpointFacts(
            name=path.name,
            step=step_of(path),
            size_bytes=size_of(path),
            problems=tuple(folder_problems(path, checksums=checksums)),
            latest=path.resolve() == links[LATEST],
            best=path.resolve() == links[BEST],
        )


def other_problems(run: RunDirectory) -> list[str]:
    """What is wrong with the run's tokenizer, which is sealed as checkpoints are."""
    return list(folder_problems(run.tokenizer, checksums=True)) if run.tokenizer.is_dir() else []


def folder_problems(folder: Path, *, checksums: bool) -> Iterator[str]:
    """What is wrong with a sealed folder, its manifest included."""
    try:
        yield from problems_of(folder, checksums=checksums)
    except DataError as error:
        half_deleted = not (folder / MANIFEST).exists()
        yield f"{folder}: has no {MANIFEST}, so it is not whole" if half_deleted else str(error)


def _object_in(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except DataError as error:
        return {"problem": str(error)}
