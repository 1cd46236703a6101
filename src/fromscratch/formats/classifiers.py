"""Classifiers in the folders of transformers (``AutoModelForSequenceClassification``), and the temperature of a run's.

transformers names the head ``score``: a matrix [C, D] on the hidden state of the last token that is not padding.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.runs.directory import CLASSIFICATION

if TYPE_CHECKING:
    from fromscratch.formats.model_sources import LoadedModel

CLASSIFIER_ENDING = "ForSequenceClassification"
"""The end of the name of a classifier's class in ``architectures``."""
SCORE = "score.weight"
REPORT_FILE = CLASSIFICATION


def classes_of(raw: dict[str, Any], where: Path) -> tuple[str, ...]:
    """Returns the classes of a ``config.json``; empty if it is not a classifier's. Raises DataError."""
    names = raw.get("architectures")
    if not isinstance(names, list) or not any(str(name).endswith(CLASSIFIER_ENDING) for name in names):
        return ()
    found = raw.get("id2label")
    if not isinstance(found, dict) or set(found) != {str(number) for number in range(len(found))} or len(found) < 2:
        raise DataError(f"{where}: id2label does not name the classes 0, 1, ... of a classifier")
    return tuple(str(found[str(number)]) for number in range(len(found)))


def class_settings(classes: tuple[str, ...], pad_token_id: int) -> dict[str, Any]:
    """Returns the keys of a classifier's ``config.json``; padding must be known to find the last token."""
    return {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "problem_type": "single_label_classification",
        "pad_token_id": pad_token_id,
    }


def take_score(tensors: dict[str, Tensor], where: Path, prefix: str = "") -> Tensor:
    """Removes and returns the head's matrix; ``prefix`` is before its name. Raises DataError."""
    if prefix + SCORE not in tensors:
        raise DataError(f"{where}: missing tensor {SCORE}, the head that scores the classes")
    return tensors.pop(prefix + SCORE)


def known_temperature(loaded: "LoadedModel") -> float | None:
    """Returns the temperature that was fitted for the weights of a run; None if none was. Raises DataError."""
    path = loaded.run.path / REPORT_FILE if loaded.run else None
    if path is None or not path.is_file():
        return None
    report = read_json_object(path)
    temperature = report.get("temperature")
    if not isinstance(temperature, float) or not 0 < temperature < float("inf"):
        raise DataError(f"{path}: 'temperature' is {temperature!r}, expected a number above 0; remove the file")
    return temperature if report.get("weights_sha256") == loaded.fingerprint() else None
