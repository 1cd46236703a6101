"""What a run can do without: checkpoints beyond retention, leftovers of interrupted writes, runs set aside.

Planning changes nothing. Nothing outside of the runs' folders is ever touched: links are removed, not
followed.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import DataError, UsageError
from fromscratch.files import flush_folder, read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import STATE_FILE, runs_in, size_of, whole
from fromscratch.runs.retention import (
    leftovers_in,
    newest_valid,
    place_to_return_to,
    plan_retention,
    recover_leftovers,
    remove_checkpoint,
)

SET_ASIDE = re.compile(r"(?P<name>.+)\.old-\d+")
CHECKPOINT, LEFTOVER, OLD_RUN = "checkpoint", "leftover", "run set aside"


@dataclass(frozen=True)
class Removal:
    """One thing that can go."""

    path: Path
    kind: str
    why: str
    size_bytes: int


def refuse_if_trained(run: RunDirectory) -> None:
    """Raises UsageError where somebody trains the run."""
    if holder := run.holder():
        raise UsageError(f"run {run.path}: is being trained by {holder}; nothing was removed, stop it first")


def plan_cleaning(run: RunDirectory, *, keep: int, set_aside: bool = False) -> list[Removal]:
    """What could go of one run.

    Args:
        keep: newest valid checkpoints to keep, beside the best one.
        set_aside: whether the runs that ``--fresh`` set aside may go whole.

    Raises:
        UsageError: its checkpoints lie elsewhere, or a run set aside is being trained.
        NewerFormatError: a later version of this software wrote the checkpoints.
    """
    if run.checkpoints.is_symlink():
        raise UsageError(f"{run.checkpoints}: is a link to {run.checkpoints.resolve()}; what lies there is not removed")
    left = [path for folder in _folders_of(run) for path in leftovers_in(folder)]
    found = [_removal(path, LEFTOVER, "left by an interrupted write") for path in left if not place_to_return_to(path)]
    plan = plan_retention(run.checkpoints, keep=keep, best_step=_best_step(run))
    found += [_removal(path, CHECKPOINT, _why(path, plan.damaged, keep)) for path in plan.removed]
    return found + (list(_runs_set_aside(run)) if set_aside else [])


def clean(run: RunDirectory, *, keep: int, set_aside: bool = False) -> tuple[list[Removal], list[Path]]:
    """Removes what ``plan_cleaning`` finds, under the run's lock.

    Returns:
        What was removed, and the checkpoints that were put back because only their replacement was half written.

    Raises:
        UsageError: somebody trains the run.
    """
    refuse_if_trained(run)
    with run.locked():
        removals = plan_cleaning(run, keep=keep, set_aside=set_aside)
        put_back = [path for folder in _folders_of(run) for path in recover_leftovers(folder)]
        for removal in removals:
            if removal.kind == CHECKPOINT:
                remove_checkpoint(removal.path)
            elif removal.kind == OLD_RUN:
                _remove_run(RunDirectory(removal.path))
    return [removal for removal in removals if not removal.path.exists()], put_back


def half_removed_runs(folder: Path) -> list[Removal]:
    """Runs whose removal was interrupted: they have lost their name already."""
    found = (path for path in leftovers_in(folder) if SET_ASIDE.fullmatch(path.name.partition(".tmp-")[0]))
    return [_removal(path, LEFTOVER, "removal of a run, interrupted") for path in found]


def remove_half_removed(removals: list[Removal]) -> None:
    """Ends those removals."""
    for removal in removals:
        shutil.rmtree(removal.path, ignore_errors=True)


def _remove_run(run: RunDirectory) -> None:
    """Takes the run's name away first, so that no half of a run is ever taken for one."""
    with run.locked():
        gone = run.path.with_name(f".{run.name}.tmp-{os.getpid()}")
        run.path.rename(gone)
        flush_folder(gone.parent)
        shutil.rmtree(gone, ignore_errors=True)


def _folders_of(run: RunDirectory) -> list[Path]:
    """Where training's interrupted writes leave things; a folder that is a link belongs to somebody else."""
    inner = (folder for folder in (run.checkpoints, run.charts) if folder.is_dir() and not folder.is_symlink())
    return [run.path, *inner]


def _runs_set_aside(run: RunDirectory) -> Iterator[Removal]:
    for other in runs_in(run.path.parent):
        match = SET_ASIDE.fullmatch(other.name)
        if match and match["name"] == run.name and not other.path.is_symlink():
            refuse_if_trained(other)
            yield _removal(other.path, OLD_RUN, "set aside by --fresh")


def _removal(path: Path, kind: str, why: str) -> Removal:
    return Removal(path, kind, why, size_of(path))


def _why(path: Path, damaged: dict[Path, str], kept: int) -> str:
    return "half deleted" if path in damaged else f"older than the newest {kept} and not the best"


def _best_step(run: RunDirectory) -> int | None:
    newest, _ = newest_valid(run.checkpoints)
    if newest is None:
        return None
    try:
        return whole(read_json_object(newest / STATE_FILE).get("best_step"))
    except DataError:
        return None
