"""Measures of a classifier from its logits: accuracy, precision, recall, calibration. Pure numpy and scipy.

Letters: N texts, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

NUM_BINS = 15  # as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)
"""The range of fitted temperatures. Few texts, all classified rightly, would have a temperature of 0."""


@dataclass(frozen=True)
class ClassMeasures:
    """Measures of one class."""

    texts: int
    """Texts of this class."""
    precision: float | None
    """Share of the texts given this class that are of it; None where no text was given it."""
    recall: float | None
    """Share of the texts of this class that were given it; None where there is none."""


@dataclass(frozen=True)
class Measures:
    """Measures of a classifier on labelled texts."""

    texts: int
    accuracy: float
    balanced_accuracy: float
    """Mean recall over the classes that occur."""
    majority_accuracy: float
    """Accuracy of always giving the most frequent class; its balanced accuracy is 1 / C."""
    loss: float
    """Cross-entropy, nats per text, at the temperature."""
    calibration_error: float
    """Expected calibration error at the temperature, of 15 bins of equal width."""
    calibration_error_uncalibrated: float
    """The same at temperature 1."""
    classes: dict[str, ClassMeasures]
    confusion: list[list[int]]
    """Texts by class (row) and given class (column)."""


def measure(
    logits: NDArray[np.float64], labels: NDArray[np.int64], names: tuple[str, ...], *, temperature: float = 1.0
) -> Measures:
    """Measures logits [N, C] against classes [N]."""
    given, size = logits.argmax(1), len(names)
    confusion = np.zeros((size, size), dtype=np.int64)
    np.add.at(confusion, (labels, given), 1)
    right, of_class, as_class = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurring = of_class > 0
    classes = {
        name: ClassMeasures(
            int(of_class[i]),
            float(right[i] / as_class[i]) if as_class[i] else None,
            float(right[i] / of_class[i]) if of_class[i] else None,
        )
        for i, name in enumerate(names)
    }
    return Measures(
        texts=len(labels),
        accuracy=float(right.sum() / len(labels)),
        balanced_accuracy=float((right[occurring] / of_class[occurring]).mean()),
        majority_accuracy=float(of_class.max() / len(labels)),
        loss=mean_loss(logits, labels, temperature),
        calibration_error=calibration_error(logits / temperature, labels),
        calibration_error_uncalibrated=calibration_error(logits, labels),
        classes=classes,
        confusion=confusion.tolist(),
    )


def mean_loss(
    logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float, weights: Sequence[float] = ()
) -> float:
    """Returns the mean cross-entropy in nats of logits [N, C] divided by the temperature.

    Args:
        weights: factors of the losses, by class; empty weighs all alike.
    """
    losses = -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels]
    return float((losses * np.array(weights)[labels]).mean() if weights else losses.mean())


def calibration_error(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the expected calibration error: how far accuracy and mean confidence of a bin differ, over all texts.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    probabilities = np.exp(log_softmax(logits, axis=1))
    confidence, is_right = probabilities.max(1), logits.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the temperature by which to divide logits for the lowest cross-entropy (Guo et al. 2017, section 4.2)."""
    return _best_temperature(partial(mean_loss, logits, labels), TEMPERATURES)


def tempered_loss(logits: NDArray[np.float64], labels: NDArray[np.int64], weights: Sequence[float] = ()) -> float:
    """Returns the lowest ``mean_loss`` at a temperature of 1 or more: what a loss is without overconfidence.

    Lower temperatures are left out: few texts, all classified rightly, would have a loss of 0 at any margin.
    """
    loss = partial(mean_loss, logits, labels, weights=weights)
    return min(loss(1.0), loss(_best_temperature(loss, (1.0, TEMPERATURES[1]))))


def _best_temperature(loss: Callable[[float], float], bounds: tuple[float, float]) -> float:
    low, high = np.log(bounds)
    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=(low, high))
    return float(np.exp(found.x))
