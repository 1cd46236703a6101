"""Measures a tuned classifier on the parts of its run: ``classification.json`` and a picture of the confusion matrix.

The temperature that calibrates the probabilities is fitted on the validation part, never on the test part.
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fromscratch.config.loading import read_run_config
from fromscratch.config.tune import Classify
from fromscratch.errors import DataError, UsageError
from fromscratch.evaluation.classification import Measures, fit_temperature, measure
from fromscratch.files import to_strict_json, write_atomically
from fromscratch.finetuning.classification import score_texts
from fromscratch.finetuning.labelled import labelled_texts, read_table
from fromscratch.finetuning.splits import FOLDER
from fromscratch.formats.classifiers import REPORT_FILE, known_temperature
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.runs.charts import DOTS_PER_INCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_FILE = "confusion-matrix.png"
FORMAT_VERSION = 1
MAX_NAMED_CELLS = 20  # with more classes, numbers in the cells would overlap


def report_on_run(loaded: LoadedModel) -> dict[str, Any]:
    """Measures the classifier of a run on its validation and test part; writes and returns the report.

    Raises:
        UsageError: not a run that classifies.
        DataError: the parts are damaged.
    """
    tune = _settings(loaded)
    assert loaded.run is not None
    scores = {name: _score(loaded, tune, loaded.run.path / FOLDER / f"{name}.json") for name in _parts(tune)}
    temperature = fit_temperature(*scores["validation"])
    found = {name: measure(*part, loaded.classes, temperature=temperature) for name, part in scores.items()}
    report = {
        "format_version": FORMAT_VERSION,
        "step": loaded.step,
        "weights_sha256": loaded.fingerprint(),
        "classes": list(loaded.classes),
        "temperature": temperature,
        **{name: asdict(part) for name, part in found.items()},
    }
    write_atomically(loaded.run.path / REPORT_FILE, to_strict_json(report, indent=1))
    loaded.run.charts.mkdir(exist_ok=True)
    last = list(found)[-1]
    draw_confusion(loaded.run.charts / PICTURE_FILE, found[last], title=f"{loaded.name}, {last} part")
    return report


def classify_texts(loaded: LoadedModel, texts: list[str], *, batch: int = 32) -> list[dict[str, Any]]:
    """Returns for each text its class and the probability of every class, calibrated if a temperature is known.

    Raises:
        UsageError: not a classifier, or a text is empty.
    """
    if not loaded.classes:
        raise UsageError(
            f"model {loaded.source}: is a language model; 'fromscratch finetune classify' makes a classifier of it"
        )
    probabilities = softmax(score_texts(loaded, texts, batch=batch) / (known_temperature(loaded) or 1.0), axis=1)
    return [
        {
            "text": text,
            "class": loaded.classes[int(row.argmax())],
            "probabilities": dict(zip(loaded.classes, row.tolist(), strict=True)),
        }
        for text, row in zip(texts, probabilities, strict=True)
    ]


def draw_confusion(path: Path, measures: Measures, *, title: str) -> None:
    """Writes a picture of the confusion matrix: a row per class, shaded by the share of its texts."""
    image = io.BytesIO()
    _confusion_figure(measures, title).savefig(image, format="png")
    write_atomically(path, image.getvalue())


def _confusion_figure(measures: Measures, title: str) -> "Figure":
    from matplotlib.figure import Figure

    counts, names = np.array(measures.confusion), list(measures.classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3.5 + 0.4 * min(len(names), 40)
    figure = Figure(figsize=(side, side), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_title(f"{title}: balanced accuracy {measures.balanced_accuracy:.1%}", loc="left", fontsize="small")
    axes.set_xlabel("given class")
    axes.set_ylabel("class")
    escaped = [name.replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(names)), escaped, rotation=90 if len(names) > 5 else 0)
    axes.set_yticks(range(len(names)), escaped)
    if len(names) <= MAX_NAMED_CELLS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    return figure


def _settings(loaded: LoadedModel) -> Classify:
    tune = read_run_config(loaded.run.config).tune if loaded.run else None
    if not isinstance(tune, Classify):
        raise UsageError(f"model {loaded.source}: is not a run of 'fromscratch finetune classify'")
    return tune


def _parts(tune: Classify) -> list[str]:
    return ["validation", "test"] if tune.test_share else ["validation"]


def _score(loaded: LoadedModel, tune: Classify, path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns logits [N, C] and classes [N] of a part."""
    found = labelled_texts(read_table(path), tune.text_column, tune.label_column)
    if unknown := sorted({*found.labels} - {*loaded.classes}):
        raise DataError(f"{path}: has classes that the model does not know: {', '.join(map(repr, unknown[:5]))}")
    labels = np.array([loaded.classes.index(label) for label in found.labels])
    return score_texts(loaded, found.texts), labels
