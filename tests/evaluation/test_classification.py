"""Measures of a classifier against values computed by hand."""

import numpy as np
import pytest

from fromscratch.evaluation.classification import (
    calibration_error,
    fit_temperature,
    mean_loss,
    measure,
    tempered_loss,
)

NAMES = ("a", "b", "c")


def logits_of(given: list[int], confidence: float = 0.8) -> np.ndarray:
    """Logits that give these classes with this probability; the other two share the rest."""
    rows = np.full((len(given), 3), np.log((1 - confidence) / 2))
    rows[np.arange(len(given)), given] = np.log(confidence)
    return rows


def test_counts_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    found = measure(logits_of([0, 0, 0, 1, 1, 0]), labels, NAMES)
    assert found.confusion == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found.accuracy == pytest.approx(4 / 6) and found.majority_accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)  # the class without texts has no recall
    assert (found.classes["a"].precision, found.classes["a"].recall) == (0.75, 0.75)
    assert (found.classes["b"].precision, found.classes["b"].recall) == (0.5, 0.5)
    assert (found.classes["c"].texts, found.classes["c"].precision, found.classes["c"].recall) == (0, None, None)


def test_calibration_error_by_hand() -> None:
    labels = np.array([0] * 10)
    assert calibration_error(logits_of([0] * 8 + [1] * 2), labels) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(logits_of([0] * 5 + [1] * 5), labels) == pytest.approx(0.3)
    both = np.concatenate([logits_of([0] * 5 + [1] * 5), logits_of([0] * 10, 0.9)])
    assert calibration_error(both, np.zeros(20, dtype=int)) == pytest.approx((0.3 + 0.1) / 2)


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 3))
    probabilities = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in probabilities])
    found = fit_temperature(true * 3, labels)
    assert found == pytest.approx(3.0, rel=0.1)
    assert mean_loss(true * 3, labels, found) < mean_loss(true * 3, labels, 1.0)
    measured = measure(true * 3, labels, NAMES, temperature=found)
    assert measured.calibration_error < 0.03
    assert measured.calibration_error_uncalibrated > 0.1


def test_all_right_has_a_finite_temperature() -> None:
    found = fit_temperature(logits_of([0, 1, 2]), np.array([0, 1, 2]))
    assert 0.05 <= found < 0.06 and np.isfinite(mean_loss(logits_of([0, 1, 2]), np.array([0, 1, 2]), found))


def test_the_tempered_loss_forgives_overconfidence_only() -> None:
    labels = np.array([0] * 10)
    calibrated, modest = logits_of([0] * 8 + [1] * 2), logits_of([0] * 8 + [1] * 2, 0.5)
    assert mean_loss(calibrated * 5, labels, 1.0) > 1.5 * mean_loss(calibrated, labels, 1.0)
    assert tempered_loss(calibrated * 5, labels) == pytest.approx(mean_loss(calibrated, labels, 1.0), rel=1e-4)
    assert tempered_loss(modest, labels) == pytest.approx(mean_loss(modest, labels, 1.0))
    assert mean_loss(modest, labels, fit_temperature(modest, labels)) < 0.95 * tempered_loss(modest, labels)


def test_the_tempered_loss_weighs_the_classes() -> None:
    labels, logits = np.array([0, 0, 0, 1]), logits_of([0, 0, 0, 0])
    right, wrong = -np.log(0.8), -np.log(0.1)
    assert mean_loss(logits, labels, 1.0, (2 / 3, 2.0, 1.0)) == pytest.approx((2 * right + 2 * wrong) / 4)
    assert tempered_loss(logits * 5, labels, (2 / 3, 2.0, 1.0)) > tempered_loss(logits * 5, labels)
