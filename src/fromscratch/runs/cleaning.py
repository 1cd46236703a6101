"""Removes runs, or what they do not need: checkpoints beyond retention, leftovers of interrupted writes.

Planning changes nothing. Files outside the folders of runs are never changed: links are removed, not followed.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import FromScratchError, UsageError
from fromscratch.files import MAX_SHOWN_NAMES, flush_folder
from fromscratch.runs.directory import RUN_FILES, RunDirectory
from fromscratch.runs.overview import observed_status, runs_in, size_of
from fromscratch.runs.retention import (
    leftovers_in,
    newest_valid,
    original_path,
    plan_retention,
    recorded_best,
    recover_leftovers,
    remove_checkpoint,
)

SET_ASIDE = re.compile(r"(?P<name>.+)\.old-\d+")
HALF_REMOVED = re.compile(r"\..+\.(?:removed|old-\d+)\.tmp-\d+")
"""Name of a run whose removal was interrupted; earlier versions removed only runs set aside."""
CHECKPOINT, LEFTOVER, OLD_RUN, WHOLE_RUN = "checkpoint", "leftover", "run set aside", "run"


@dataclass(frozen=True)
class Removal:
    """One file or folder that can be removed."""

    path: Path
    kind: str
    why: str
    size_bytes: int


def refuse_if_trained(run: RunDirectory) -> None:
    """Raises UsageError if a process trains the run."""
    if holder := run.holder():
        raise UsageError(f"run {run.path}: is being trained by {holder}; nothing was removed, stop it first")


def plan_cleaning(run: RunDirectory, *, keep: int, set_aside: bool = False) -> list[Removal]:
    """Lists what can be removed from one run.

    Args:
        keep: number of newest valid checkpoints to keep, besides the best one.
        set_aside: whether to remove the runs that ``--fresh`` set aside.

    Raises:
        UsageError: the folder of checkpoints is a link, or a run set aside is being trained.
        NewerFormatError: a later version of this software wrote the checkpoints.
    """
    if run.checkpoints.is_symlink():
        raise UsageError(f"{run.checkpoints}: is a link to {run.checkpoints.resolve()}; nothing there is removed")
    left = [path for folder in _folders_of(run) for path in leftovers_in(folder)]
    found = [_removal(path, LEFTOVER, "left by an interrupted write") for path in left if not original_path(path)]
    newest, _ = newest_valid(run.checkpoints)
    plan = plan_retention(run.checkpoints, keep=keep, best_step=recorded_best(newest)[1] if newest else None)
    too_old = f"older than the newest {keep} and not the best"
    found += [_removal(p, CHECKPOINT, "half deleted" if p in plan.damaged else too_old) for p in plan.removed]
    return found + (list(_runs_set_aside(run)) if set_aside else [])


def clean(run: RunDirectory, *, keep: int, set_aside: bool = False) -> tuple[list[Removal], list[Path]]:
    """Removes what ``plan_cleaning`` lists, holding the run's lock.

    Returns:
        What was removed, and the checkpoints that were restored because their replacement was never completed.

    Raises:
        UsageError: a process trains the run.
    """
    refuse_if_trained(run)
    with run.locked():
        removals = plan_cleaning(run, keep=keep, set_aside=set_aside)
        restored = [path for folder in _folders_of(run) for path in recover_leftovers(folder)]
        for removal in removals:
            if removal.kind == CHECKPOINT:
                remove_checkpoint(removal.path)
            elif removal.kind == OLD_RUN:
                _remove_run(RunDirectory(removal.path))
    return [removal for removal in removals if not removal.path.exists()], restored


def plan_run_removals(runs: Sequence[RunDirectory]) -> list[Removal]:
    """Lists whole runs that may be removed, each once.

    Raises:
        UsageError: a run is being trained, is a link, holds the current folder, or holds files that no run has.
    """
    by_path = {run.path.resolve(): run for run in runs}
    return [_run_removal(run) for run in by_path.values()]


def _run_removal(run: RunDirectory) -> Removal:
    refuse_if_trained(run)
    nothing = "nothing was removed"
    if run.path.is_symlink():
        raise UsageError(f"run {run.path}: is a link to {run.path.resolve()}; {nothing}, name the folder itself")
    if Path.cwd().is_relative_to(run.path.resolve()):
        raise UsageError(f"run {run.path}: holds the current folder; {nothing}, change to another folder first")
    leftovers = leftovers_in(run.path)
    others = sorted(path.name for path in run.path.iterdir() if path.name not in RUN_FILES and path not in leftovers)
    if others:
        listed = ", ".join(others[:MAX_SHOWN_NAMES]) + (", ..." if len(others) > MAX_SHOWN_NAMES else "")
        raise UsageError(f"run {run.path}: also holds {listed}, which no run has; {nothing}, move them away first")
    status = observed_status(run)
    return _removal(run.path, WHOLE_RUN, f"{status.state}, step {'unknown' if status.step is None else status.step}")


def remove_runs(removals: Sequence[Removal]) -> None:
    """Removes what ``plan_run_removals`` lists.

    Raises:
        UsageError: a process has begun to train a run.
        FromScratchError: a run cannot be removed, or not completely.
    """
    for removal in removals:
        _remove_run(RunDirectory(removal.path.resolve()))


def interrupted_removals(folder: Path, *, finish: bool) -> list[Removal]:
    """Lists the runs whose removal was interrupted after they were renamed; ``finish`` deletes them."""
    found = [path for path in leftovers_in(folder) if HALF_REMOVED.fullmatch(path.name)]
    removals = [_removal(path, LEFTOVER, "interrupted removal of a run") for path in found]
    for path in found if finish else ():
        _delete(path)
    return removals


def _remove_run(run: RunDirectory) -> None:
    """Renames the run before deleting it, so that a half-deleted folder is not read as a run."""
    renamed = run.path.with_name(f".{run.name}.removed.tmp-{os.getpid()}")
    try:
        with run.locked():
            run.path.rename(renamed)
            flush_folder(renamed.parent)
            _delete(renamed)
    except OSError as error:
        raise FromScratchError(f"run {run.path}: cannot be removed ({error.strerror})") from error


def _delete(folder: Path) -> None:
    """Deletes a folder without following links. Raises FromScratchError if a part of it remains."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise FromScratchError(
            f"{folder}: was not removed completely ({error.strerror}: {error.filename}); 'fromscratch runs clean "
            "--yes' removes the rest"
        ) from error


def _folders_of(run: RunDirectory) -> list[Path]:
    """Lists the folders in which interrupted writes leave files, without links."""
    inner = (
        folder for folder in (run.checkpoints, run.charts, run.configs) if folder.is_dir() and not folder.is_symlink()
    )
    return [run.path, *inner]


def _runs_set_aside(run: RunDirectory) -> Iterator[Removal]:
    for other in runs_in(run.path.parent):
        match = SET_ASIDE.fullmatch(other.name)
        if match and match["name"] == run.name and not other.path.is_symlink():
            refuse_if_trained(other)
            yield _removal(other.path, OLD_RUN, "set aside by --fresh")


def _removal(path: Path, kind: str, why: str) -> Removal:
    return Removal(path, kind, why, size_of(path))
