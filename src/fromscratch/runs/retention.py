"""Lists, verifies and removes a run's checkpoints.

A checkpoint is a sealed folder ``step-N``; it is valid if its manifest verifies. The links ``latest`` and
``best`` are for people: programs search for the newest folder that verifies.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import DataError
from fromscratch.files import (
    MANIFEST,
    NewerFormatError,
    flush_folder,
    point_link,
    read_json_object,
    remove,
    verify_folder,
)
from fromscratch.runs.records import to_count, to_float

LATEST, BEST = "latest", "best"
STATE_FILE = "state.json"
FOLDER_NAME = re.compile(r"step-(\d{8})")
LEFTOVER_NAME = re.compile(r"\.(?P<name>.+?)(?P<old>\.old)?\.tmp-\d+|\.probe-\d+")


@dataclass(frozen=True)
class RetentionPlan:
    """The checkpoints to keep and those to remove, oldest first."""

    kept: tuple[Path, ...]
    removed: tuple[Path, ...]
    damaged: dict[Path, str]
    """Checkpoints that do not verify, kept or removed, with the reason."""


def checkpoint_name(step: int) -> str:
    """Returns the folder name; names sort in the order of steps."""
    return f"step-{step:08}"


def step_of(checkpoint: Path) -> int:
    """Reads the step from the name of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[Path]:
    """Lists the checkpoint folders by step, without links and leftovers."""
    found = (p for p in folder.glob("step-*") if FOLDER_NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink())
    return sorted(found, key=lambda path: path.name)


def recorded_best(checkpoint: Path) -> tuple[float | None, int | None]:
    """Reads the loss and the step of the best checkpoint so far, as far as this checkpoint records them."""
    try:
        state = read_json_object(checkpoint / STATE_FILE)
    except DataError:
        return None, None
    return to_float(state.get("best_loss")), to_count(state.get("best_step"))


def damage_of(checkpoint: Path) -> str:
    """Says why a checkpoint is not valid; empty if it is. Raises NewerFormatError."""
    try:
        verify_folder(checkpoint)
    except NewerFormatError:
        raise
    except DataError as error:
        return str(error)
    return ""


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """Finds the newest checkpoint that verifies, and why newer ones do not. Raises NewerFormatError."""
    skipped = []
    for path in reversed(checkpoints_in(folder)):
        if damage := damage_of(path):
            skipped.append(damage)
        else:
            return path, skipped
    return None, skipped


def plan_retention(folder: Path, *, keep: int, best_step: int | None, trusted: Iterable[Path] = ()) -> RetentionPlan:
    """Keeps the newest ``keep`` valid checkpoints and the best; removes older ones.

    The newest ones are verified first, so damaged ones never push out the last valid one. Folders without
    a manifest (half deleted) are removed too. If no checkpoint is valid, none is removed.

    Args:
        trusted: checkpoints that were just written; they are not read again.
    """
    trusted = set(trusted)
    valid: list[Path] = []
    kept: list[Path] = []
    removed: list[Path] = []
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints_in(folder)):
        if len(valid) == keep:
            is_best = best_step is not None and path.name == checkpoint_name(best_step)
            (kept if is_best else removed).append(path)
            continue
        try:
            damage = "" if path in trusted else damage_of(path)
        except NewerFormatError as error:
            damage = str(error)
        if not damage:
            valid.append(path)
        else:
            damaged[path] = damage
        half_deleted = damage and not (path / MANIFEST).exists()
        (removed if half_deleted else kept).append(path)
    if not valid:
        kept, removed = [*kept, *removed], []
    return RetentionPlan(tuple(sorted(kept)), tuple(sorted(removed)), damaged)


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint; the manifest first, so that a half-deleted one is invalid."""
    (path / MANIFEST).unlink(missing_ok=True)
    flush_folder(path)
    shutil.rmtree(path, ignore_errors=True)


def leftovers_in(folder: Path) -> list[Path]:
    """Lists the temporary files, folders and links that interrupted writes left in a folder."""
    return sorted(path for path in folder.glob(".*") if LEFTOVER_NAME.fullmatch(path.name))


def original_path(leftover: Path) -> Path | None:
    """Where to restore a checkpoint that was renamed for a replacement never completed; None for other leftovers."""
    match = LEFTOVER_NAME.fullmatch(leftover.name)
    if not match or not match["old"]:
        return None
    original = leftover.with_name(match["name"])
    return original if not original.exists() and not damage_of(leftover) else None


def recover_leftovers(folder: Path) -> list[Path]:
    """Deletes what interrupted saves left behind; returns the checkpoints that it restored.

    A save renames an older checkpoint of the same step. It is restored if the new one was never completed.
    """
    recovered = []
    for path in leftovers_in(folder):
        if original := original_path(path):
            path.rename(original)
            recovered.append(original)
        else:
            remove(path)
    flush_folder(folder)
    return recovered


def wrong_links(folder: Path) -> list[str]:
    """Describes each of ``latest`` and ``best`` that points to no checkpoint of the folder."""
    names = {path.name for path in checkpoints_in(folder)}
    links = (folder / name for name in (LATEST, BEST))
    return [
        f"{link}: points to {link.readlink()}, which is not a checkpoint of this run"
        for link in links
        if link.is_symlink() and str(link.readlink()) not in names
    ]


def repair_links(folder: Path, *, latest: Path, best_step: int | None) -> None:
    """Points ``latest`` and ``best`` to their checkpoints; removes ``best`` if its checkpoint is gone."""
    point_link(folder / LATEST, latest.name)
    best = folder / checkpoint_name(best_step or 0)
    if best_step is not None and best.is_dir():
        point_link(folder / BEST, best.name)
    else:
        (folder / BEST).unlink(missing_ok=True)
