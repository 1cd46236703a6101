"""Saves evaluations in the run of the evaluated model: ``evaluations/<name>.json``."""

from pathlib import Path
from typing import Any

from fromscratch.files import to_strict_json, write_atomically
from fromscratch.formats.model_sources import LoadedModel


def save_evaluation(loaded: LoadedModel, name: str, values: dict[str, Any]) -> Path | None:
    """Writes the values and the model's step; None for a model without a run."""
    if loaded.run is None:
        return None
    loaded.run.evaluations.mkdir(exist_ok=True)
    path = loaded.run.evaluations / f"{name}.json"
    write_atomically(path, to_strict_json({"step": loaded.step, **values}, indent=1))
    return path
