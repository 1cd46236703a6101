"""Saves evaluations in the run of the evaluated model: ``evaluations/<name>.json``."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import read_json_object, to_strict_json, write_atomically
from fromscratch.formats.checkpoints import RAW
from fromscratch.formats.model_sources import LoadedModel


def save_evaluation(
    loaded: LoadedModel, name: str, values: dict[str, Any], *, question: Sequence[str] = ()
) -> Path | None:
    """Writes the values and the model's step; None for a model without a run.

    Replaces an earlier answer to the same question only; an answer to another one gets the name ``<name>-2``.

    Args:
        question: the keys of ``values`` that say what was measured.
    """
    if loaded.run is None:
        return None
    loaded.run.evaluations.mkdir(exist_ok=True)
    if loaded.weights != RAW:
        name, values = f"{name}-{loaded.weights}", {"weights": loaded.weights, **values}
    path = next(path for path in _paths(loaded.run.evaluations, name) if _is_free(path, values, question))
    write_atomically(path, to_strict_json({"step": loaded.step, **values}, indent=1))
    return path


def _paths(folder: Path, name: str) -> Iterator[Path]:
    yield folder / f"{name}.json"
    yield from (folder / f"{name}-{number}.json" for number in count(2))


def _is_free(path: Path, values: dict[str, Any], question: Sequence[str]) -> bool:
    """Whether there is no such file, or it answers the same question."""
    if not path.exists():
        return True
    try:
        earlier = read_json_object(path)
    except DataError:  # somebody's file
        return False
    return all(earlier.get(key) == values.get(key) for key in question)
