"""What runs there are, and how each of them stands. Looking changes nothing, whatever state a run is in."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import last_record, read_records
from fromscratch.runs.retention import checkpoints_in

RUNNING, INTERRUPTED, UNKNOWN = "running", "interrupted", "unknown"
ENDED = ("done", "stopped", "failed", "diverged")
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Overview:
    """How a run stands; None is unknown."""

    name: str
    path: str
    state: str
    """``running``, ``done``, ``stopped``, ``failed``, ``diverged``; ``interrupted`` where nobody trains a run that
    never ended; ``unknown`` where its status cannot be read."""
    reason: str
    """Why it ended, or who trains it."""
    step: int | None
    num_steps: int | None
    progress: float | None
    """Share of the steps that are done, from 0 to 1."""
    loss: float | None
    """Training loss of the last step on record."""
    best_loss: float | None
    """Of the best checkpoint; where no checkpoint says, the lowest held-out loss on record."""
    best_step: int | None
    checkpoints: int
    size_bytes: int
    began_at: str | None
    """Instants are ISO 8601, UTC."""
    updated_at: str | None


def runs_in(folder: Path) -> list[RunDirectory]:
    """The runs of a folder by name. Raises UsageError where it is none or cannot be read."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of runs; train something, or give another --runs-dir")
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from error
    return [run for path in paths if not path.name.startswith(".") and (run := RunDirectory(path)).exists()]


def named_run(word: str, runs_dir: Path) -> RunDirectory:
    """The run that a word names: a path, or a name in ``runs_dir``. Raises UsageError where there is none."""
    try:
        for path in (Path(word).expanduser(), runs_dir / word):
            if word and RunDirectory(path).exists():
                return RunDirectory(path)
    except (OSError, ValueError, RuntimeError):
        pass  # no file can have such a name
    raise UsageError(f"run {word[:120]!r}: no such run, here or in {runs_dir}; 'fromscratch runs list' names them")


def overview(run: RunDirectory) -> Overview:
    """How a run stands, from its files and its lock."""
    state, reason, status = state_of(run)
    last = last_record(run.metrics)
    step, num_steps = whole(status.get("step")), whole(status.get("num_steps"))
    if state not in ENDED:  # the status is as old as the last checkpoint
        step = max((s for s in (step, whole(last.get("step"))) if s is not None), default=None)
    best_loss, best_step = best_of(run)
    instants = [modified_at(path) for path in (run.status, run.metrics, run.events)]
    return Overview(
        name=run.name,
        path=str(run.path),
        state=state,
        reason=reason,
        step=step,
        num_steps=num_steps,
        progress=min(1.0, step / num_steps) if step is not None and num_steps else None,
        loss=number(last.get("loss")),
        best_loss=best_loss,
        best_step=best_step,
        checkpoints=len(checkpoints_in(run.checkpoints)),
        size_bytes=size_of(run.path.resolve()),
        began_at=instant(modified_at(run.config)),
        updated_at=instant(max((at for at in instants if at is not None), default=None)),
    )


def state_of(run: RunDirectory) -> tuple[str, str, dict[str, Any]]:
    """The state, its reason, and the status on the disk; the lock, not the status, says who trains."""
    try:
        status = read_json_object(run.status) if run.status.exists() else {}
    except DataError as error:
        return UNKNOWN, str(error), {}
    if holder := run.holder():
        return RUNNING, f"trained by {holder}", status
    state = status.get("state", RUNNING)
    if state == RUNNING:
        return INTERRUPTED, "nobody trains it, and it did not end by itself; the same command goes on", status
    if state not in ENDED:
        return UNKNOWN, f"{run.status}: no state that is known here", status
    return state, str(status.get("reason") or ""), status


def best_of(run: RunDirectory) -> tuple[float | None, int | None]:
    """Loss and step of the best checkpoint, as the newest one knows it, or of the lowest evaluation on record."""
    for checkpoint in reversed(checkpoints_in(run.checkpoints)):
        try:
            state = read_json_object(checkpoint / STATE_FILE)
        except DataError:
            continue
        if (loss := number(state.get("best_loss"))) is not None:
            return loss, whole(state.get("best_step"))
    evaluations = (record for record in read_records(run.events) if record.get("event") == "evaluation")
    losses = ((number(record.get("loss")), whole(record.get("step"))) for record in evaluations)
    return min(((loss, step) for loss, step in losses if loss is not None), default=(None, None), key=lambda x: x[0])


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as themselves and are not followed."""
    try:
        return sum(_sizes_below(path)) if path.is_dir() and not path.is_symlink() else path.lstat().st_size
    except OSError:
        return 0


def _sizes_below(folder: Path) -> Iterator[int]:
    for parent, _, files in os.walk(folder):  # follows no links
        for name in files:
            try:
                yield Path(parent, name).lstat().st_size
            except OSError:  # deleted by the run meanwhile
                continue


def whole(value: Any) -> int | None:
    """The whole number, if it is one that a step can be."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def number(value: Any) -> float | None:
    """The number as a float, if it is one."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def modified_at(path: Path) -> float | None:
    """When a file was last written, in seconds since 1970."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def instant(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, to the second."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None
