"""Measures are kept in the run of the model they are of: ``evaluations/<name>.json``."""

from pathlib import Path
from typing import Any

from fromscratch.files import to_strict_json, write_atomically
from fromscratch.formats.model_sources import LoadedModel


def keep_evaluation(loaded: LoadedModel, name: str, facts: dict[str, Any]) -> Path | None:
    """Writes the facts with the step they belong to; None for a model that no run here made."""
    if loaded.run is None:
        return None
    loaded.run.evaluations.mkdir(exist_ok=True)
    path = loaded.run.evaluations / f"{name}.json"
    write_atomically(path, to_strict_json({"step": loaded.step, **facts}, indent=1))
    return path
