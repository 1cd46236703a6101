"""Which checkpoints a run has, which of them are whole, and which may go. Asking changes nothing.

A checkpoint is a sealed folder ``step-N``; its manifest says whether it is whole. ``latest`` and
``best`` are links for people: whoever needs a checkpoint looks for the newest folder that verifies.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, NewerFormatError, flush_folder, point_link, verify_folder

LATEST, BEST = "latest", "best"
FOLDER_NAME = re.compile(r"step-(\d{8})")
LEFTOVER_NAME = re.compile(r"\.(?P<name>.+?)(?P<old>\.old)?\.tmp-\d+|\.probe-\d+")


@dataclass(frozen=True)
class RetentionPlan:
    """What would become of a run's checkpoints, oldest first."""

    kept: tuple[Path, ...]
    removed: tuple[Path, ...]
    damaged: dict[Path, str]
    """Those that do not verify, kept or removed, and why."""


def checkpoint_name(step: int) -> str:
    """The folder's name; names sort as steps do."""
    return f"step-{step:08}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first; links and leftovers are not among them."""
    found = (p for p in folder.glob("step-*") if FOLDER_NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink())
    return sorted(found, key=lambda path: path.name)


def damage_of(checkpoint: Path, *, checksums: bool = True) -> str:
    """Why a checkpoint is not whole; nothing where it is. Raises NewerFormatError."""
    try:
        verify_folder(checkpoint, checksums=checksums)
    except NewerFormatError:
        raise
    except DataError as error:
        return str(error)
    return ""


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were passed over. Raises NewerFormatError."""
    skipped = []
    for path in reversed(checkpoints_in(folder)):
        if damage := damage_of(path):
            skipped.append(damage)
        else:
            return path, skipped
    return None, skipped


def plan_retention(folder: Path, *, keep: int, best_step: int | None, trusted: Iterable[Path] = ()) -> RetentionPlan:
    """Keeps the newest ``keep`` valid checkpoints and the best; what is older may go.

    Everything kept in its own right has been read and verified, so the last good checkpoint stays
    whatever happened to newer ones. Folders without a manifest (half deleted) may go too. While
    nothing is valid, nothing goes.

    Args:
        trusted: checkpoints that were sealed a moment ago; they are not read again.
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
    """Deletes a checkpoint; it becomes invalid before anything else of it goes."""
    (path / MANIFEST).unlink(missing_ok=True)
    flush_folder(path)
    shutil.rmtree(path, ignore_errors=True)


def leftovers_in(folder: Path) -> list[Path]:
    """What interrupted writes left in a folder: temporary files, folders and links."""
    return sorted(path for path in folder.glob(".*") if LEFTOVER_NAME.fullmatch(path.name))


def place_to_return_to(leftover: Path) -> Path | None:
    """Where a checkpoint belongs that stepped aside for a new one which never arrived; None for other leftovers."""
    match = LEFTOVER_NAME.fullmatch(leftover.name)
    if not match or not match["old"]:
        return None
    place = leftover.with_name(match["name"])
    return place if not place.exists() and not damage_of(leftover) else None


def recover_leftovers(folder: Path) -> list[Path]:
    """Deletes what interrupted saves left behind, and returns the checkpoints that were put back.

    A checkpoint that had stepped aside for a new one of the same step returns to its place when the
    new one never arrived.
    """
    recovered = []
    for path in leftovers_in(folder):
        if place := place_to_return_to(path):
            path.rename(place)
            recovered.append(place)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    flush_folder(folder)
    return recovered


def odd_links(folder: Path) -> list[str]:
    """Why ``latest`` or ``best`` lead to no checkpoint beside them; nothing depends on them, so they are only told."""
    names = {path.name for path in checkpoints_in(folder)}
    links = (folder / name for name in (LATEST, BEST))
    return [
        f"{link}: leads to {link.readlink()}, which is no checkpoint of this run"
        for link in links
        if link.is_symlink() and str(link.readlink()) not in names
    ]


def mend_links(folder: Path, *, latest: Path, best_step: int | None) -> None:
    """Makes ``latest`` and ``best`` lead where they should; without its checkpoint, ``best`` goes."""
    point_link(folder / LATEST, latest.name)
    best = folder / checkpoint_name(best_step or 0)
    if best_step is not None and best.is_dir():
        point_link(folder / BEST, best.name)
    else:
        (folder / BEST).unlink(missing_ok=True)
