"""The runs of a folder and the state of each. Reads only; a damaged file never raises an error."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from fromscratch.errors import DataError, UsageError
from fromscratch.runs.directory import RunDirectory, RunStatus
from fromscratch.runs.records import last_record, read_records, recent_records, to_count, to_float, to_instant
from fromscratch.runs.retention import checkpoints_in, recorded_best
from fromscratch.runs.states import ENDED, Event, RunState

RECENT_STEPS = 50


@dataclass(frozen=True)
class Overview:
    """The key figures of a run; None means unknown."""

    name: str
    path: str
    state: RunState
    reason: str
    """Why the run ended, or which process trains it."""
    step: int | None
    num_steps: int | None
    progress: float | None
    """Completed share of the steps, from 0 to 1."""
    loss: float | None
    """Training loss of the last step on record."""
    best_loss: float | None
    """Loss of the best checkpoint; if no checkpoint records it, the lowest held-out loss in the events."""
    best_step: int | None
    checkpoints: int
    size_bytes: int
    began_at: str | None
    """Instant of the first event, ISO 8601 in UTC; the times of files say nothing about a copy of a run."""
    updated_at: str | None
    """Instant of the last event."""


def runs_in(folder: Path) -> list[RunDirectory]:
    """Lists the runs of a folder by name. Raises UsageError if the folder does not exist or cannot be read."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of runs; train something, or give another --runs-dir")
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from error
    return [run for path in paths if not path.name.startswith(".") and (run := RunDirectory(path)).exists()]


def resolve_run(run: str, runs_dir: Path) -> RunDirectory:
    """Finds a run by its path, or by its name in ``runs_dir``. Raises UsageError if there is none."""
    try:
        for path in (Path(run).expanduser(), runs_dir / run):
            if run and RunDirectory(path).exists():
                return RunDirectory(path)
    except (OSError, ValueError, RuntimeError):
        pass  # not a valid file name
    raise UsageError(f"run {run[:120]!r}: no such run, here or in {runs_dir}; 'fromscratch runs list' lists them")


def overview(run: RunDirectory) -> Overview:
    """Reads the key figures of a run from its files and its lock."""
    status, last = observed_status(run), last_record(run.metrics)
    step, num_steps = status.step, status.num_steps
    if status.state not in ENDED:  # the status is as old as the last checkpoint
        step = max((s for s in (step, to_count(last.get("step"))) if s is not None), default=None)
    best_loss, best_step = _best_of(run, step)
    return Overview(
        name=run.name,
        path=str(run.path),
        state=status.state,
        reason=status.reason,
        step=step,
        num_steps=num_steps,
        progress=min(1.0, step / num_steps) if step is not None and num_steps else None,
        loss=to_float(last.get("loss")),
        best_loss=best_loss,
        best_step=best_step,
        checkpoints=len(checkpoints_in(run.checkpoints)),
        size_bytes=size_of(run.path.resolve()),
        began_at=to_instant(next(read_records(run.events), {}).get("at")),
        updated_at=to_instant(last_record(run.events).get("at")),
    )


def recent_speed(run: RunDirectory) -> tuple[float | None, float | None]:
    """Medians of the last steps: tokens per second, and seconds per step; None where none is on record."""
    records = recent_records(run.metrics, RECENT_STEPS)
    speeds = [value for one in records if (value := to_float(one.get("tokens_per_second"))) is not None]
    seconds = [value for one in records if (value := to_float(one.get("seconds"))) is not None]
    return median(speeds) if speeds else None, median(seconds) if seconds else None


def observed_status(run: RunDirectory) -> RunStatus:
    """Reads the status and corrects its state: only the lock says whether a process trains the run."""
    try:
        status = run.read_status() if run.status.exists() else RunStatus(RunState.RUNNING, None, None)
    except DataError as error:
        return RunStatus(RunState.UNKNOWN, None, None, str(error))
    if holder := run.holder():
        return replace(status, state=RunState.RUNNING, reason=f"trained by {holder}")
    if status.state == RunState.RUNNING:
        return replace(status, state=RunState.INTERRUPTED, reason="its process was killed; the same command resumes it")
    if status.state not in ENDED:
        return replace(status, state=RunState.UNKNOWN, reason=f"{run.status}: unknown state")
    return status


def _best_of(run: RunDirectory, last_step: int | None) -> tuple[float | None, int | None]:
    """Finds loss and step of the best checkpoint in the newest one, else in the lowest evaluation."""
    for checkpoint in reversed(checkpoints_in(run.checkpoints)):
        loss, step = recorded_best(checkpoint)
        if loss is not None:
            return loss, step
    return lowest_evaluation(run, last_step)


def lowest_evaluation(run: RunDirectory, last_step: int | None) -> tuple[float | None, int | None]:
    """Finds the lowest held-out loss in the events and its step; without evaluations after ``last_step``."""
    evaluations = (record for record in read_records(run.events) if record.get("event") == Event.EVALUATION)
    by_step = {to_count(record.get("step")): to_float(record.get("loss")) for record in evaluations}
    losses = [(loss, step) for step, loss in by_step.items() if loss is not None and step is not None]
    reached = [(loss, step) for loss, step in losses if last_step is None or step <= last_step]
    return min(reached, default=(None, None))


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files below a folder, without following links."""
    size, files = 0, [path]
    if path.is_dir() and not path.is_symlink():
        files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
    for file in files:
        with suppress(OSError):  # the run has just deleted it
            size += file.lstat().st_size
    return size
