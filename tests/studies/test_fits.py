"""Fits: known curves are found, intervals cover, extrapolation is warned of."""

import math

import numpy as np
import pytest

from fromscratch.errors import UsageError
from fromscratch.studies.fits import fit_best_batch, fit_critical_batch, fit_line, fit_power_law

BATCHES = np.array([16, 32, 64, 128, 256, 512])


def test_a_line_by_hand_with_a_warning_outside_its_data() -> None:
    fit = fit_line([1, 2, 4, 8], [1100, 1210, 1390, 1800], x_name="micro_batch", y_name="memory_mb")
    slope, intercept = np.polyfit([1, 2, 4, 8], [1100, 1210, 1390, 1800], 1)
    assert fit.parameters["slope"].value == pytest.approx(slope)
    assert fit.parameters["intercept"].value == pytest.approx(intercept)
    inside, outside = fit.predict(micro_batch=6), fit.predict(micro_batch=16)
    assert inside.value == pytest.approx(intercept + 6 * slope)
    assert inside.warning is None
    assert outside.warning == "extrapolation: micro_batch = 16 is outside the data (1 to 8)"
    assert fit.formula.startswith("memory_mb = ")
    with pytest.raises(UsageError, match="give micro_batch"):
        fit.predict(batch=3)


def test_intervals_of_line_and_best_batch_cover() -> None:
    generator = np.random.default_rng(0)
    hits = np.zeros(4)
    for _ in range(400):
        noise = 0.002 * generator.standard_normal(6)
        line = fit_line(BATCHES, 3 + 0.01 * BATCHES + noise, x_name="x", y_name="y").parameters["slope"]
        best = fit_best_batch(BATCHES, 3.4 + 0.01 * (np.log(BATCHES) - math.log(100)) ** 2 + noise).parameters
        for index, (estimate, truth) in enumerate(
            [(line, 0.01), (best["best"], 100), (best["curvature"], 0.01), (best["floor"], 3.4)]
        ):
            hits[index] += estimate.low <= truth <= estimate.high
    assert hits / 400 == pytest.approx(0.95, abs=0.035)


def test_the_best_batch_of_an_exact_parabola() -> None:
    fit = fit_best_batch(BATCHES, 3.4 + 0.01 * (np.log(BATCHES) - math.log(100)) ** 2)
    best = fit.parameters["best"]
    assert (best.value, best.low, best.high) == pytest.approx((100, 100, 100), rel=1e-4)
    assert fit.predict(batch=100).value == pytest.approx(3.4)
    assert fit.residual_deviation < 1e-6


def test_a_curvature_that_may_be_none_bounds_no_batch() -> None:
    noise = np.array([0.01, -0.01, 0.012, -0.008, 0.009, -0.004])
    best = fit_best_batch(BATCHES, 3.4 + 0.0005 * (np.log(BATCHES) - math.log(100)) ** 2 + noise).parameters["best"]
    assert (best.low, best.high) == (0.0, math.inf)


def test_a_power_law_in_parameters_and_tokens_is_found_again() -> None:
    generator = np.random.default_rng(0)
    parameters, tokens = (grid.ravel() for grid in np.meshgrid([3e7, 8e7, 1.6e8, 4e8], [5e8, 2e9, 8e9, 3e10]))
    truth = 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28
    fit = fit_power_law(truth * np.exp(3e-4 * generator.standard_normal(16)), parameters=parameters, tokens=tokens)
    for name, value in (("E", 1.69), ("parameters_exponent", 0.34), ("tokens_exponent", 0.28)):
        estimate = fit.parameters[name]
        assert estimate.low < value < estimate.high
        assert estimate.value == pytest.approx(value, rel=0.1)
    between = fit.predict(parameters=1e8, tokens=4e9)
    assert between.value == pytest.approx(1.69 + 406.4 / 1e8**0.34 + 410.7 / 4e9**0.28, rel=1e-3)
    assert between.warning is None
    assert "tokens" in str(fit.predict(parameters=1e8, tokens=1e12).warning)


def test_the_intervals_of_the_power_law_cover() -> None:
    generator = np.random.default_rng(1)
    tokens = np.geomspace(1e8, 3e10, 10)
    truth = 2.0 + 1.5 * (tokens / 1e9) ** -0.3
    hits = np.zeros(2)
    for _ in range(40):
        fit = fit_power_law(truth * np.exp(3e-4 * generator.standard_normal(10)), tokens=tokens).parameters
        for index, (name, value) in enumerate((("E", 2.0), ("tokens_exponent", 0.3))):
            hits[index] += fit[name].low <= value <= fit[name].high
    assert (hits / 40 > 0.86).all(), hits / 40


@pytest.mark.parametrize(
    ("loss", "tokens", "message"),
    [
        ([3.0, 2.9, 2.8], [1e8, 2e8, 4e8], "more than 3"),
        ([3.0, 2.9, float("nan"), 2.7], [1e8, 2e8, 4e8, 8e8], "leave out runs that diverged"),
        ([3.0, 2.9, 2.8, 2.7], [1e8, 2e8, 4e8], "3 of tokens"),
        ([3.0, 3.01, 2.99, 3.0], [1e8, 1e8, 1e8, 1e8], "do not determine"),
    ],
)
def test_data_that_determine_no_curve_are_refused(loss: list[float], tokens: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_power_law(loss, tokens=tokens)


def test_curves_without_a_best_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="no batch is best"):
        fit_best_batch(BATCHES, 3.4 - 0.01 * (np.log(BATCHES) - math.log(100)) ** 2)
    with pytest.raises(UsageError, match="too few different values"):
        fit_best_batch([8, 8, 16, 16], [3.0, 3.1, 3.0, 3.1])


def gradient_norms(generator: np.random.Generator, counts: dict[int, int]) -> tuple[list[int], list[float]]:
    """Squared norms of simulated gradients of 50 weights: |G|^2 = 2, tr(S) = 112.5."""
    batch = [size for size, count in counts.items() for _ in range(count)]
    deviation = 1.5 / np.sqrt(np.array(batch, dtype=float))[:, None]
    draws = 0.2 + deviation * generator.standard_normal((len(batch), 50))
    return batch, (draws**2).sum(axis=1).tolist()


def test_the_fit_critical_batch_of_simulated_gradients() -> None:
    fit = fit_critical_batch(*gradient_norms(np.random.default_rng(0), {8: 4_000, 128: 4_000}))
    found = fit.parameters["critical"]
    assert found.value == pytest.approx(56.25, rel=0.05) and found.low < 56.25 < found.high < 62
    assert fit.parameters["gradient"].value == pytest.approx(2.0, rel=0.05)
    assert fit.predict(batch=16).value == pytest.approx(2 + 112.5 / 16, rel=0.05) and fit.warnings() == []


def test_the_interval_of_the_fit_critical_batch_covers() -> None:
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        found = fit_critical_batch(*gradient_norms(generator, {4: 24, 128: 8})).parameters["critical"]
        hits += found.low < 56.25 < found.high
    assert hits / 200 >= 0.92, hits


def test_a_gradient_that_may_be_none_bounds_the_fit_critical_batch_below_only() -> None:
    fit = fit_critical_batch([1, 1, 1, 1, 2, 2, 2, 2], [100.0, 90.0, 112.0, 98.0, 60.0, 41.0, 55.0, 50.0])
    assert fit.parameters["critical"].high == math.inf
    assert any("reaches outside the data" in line for line in fit.warnings())


def test_norms_that_determine_no_fit_critical_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="no noise"):
        fit_critical_batch([8, 8, 128, 128], [1.0, 1.1, 2.0, 2.1])
    with pytest.raises(UsageError, match="no gradient"):
        fit_critical_batch([1, 1, 2, 2], [10.0, 10.1, 4.0, 4.1])
    with pytest.raises(UsageError, match="2 of batch 1, 1 of batch 2, 1 of batch 3: needs two batch sizes"):
        fit_critical_batch([1, 1, 2, 3], [10.0, 10.1, 4.0, 4.1])


def test_an_answer_outside_the_data_is_an_extrapolation() -> None:
    loss = 3.4 + 0.01 * (np.log(BATCHES) - math.log(2_000)) ** 2
    warnings = fit_best_batch(BATCHES, loss).warnings()
    assert "the best batch = 2000 is outside the data" in warnings[0] and "add settings further apart" in warnings[1]
    with pytest.raises(UsageError, match="batch = -1: must be finite and above 0"):
        fit_best_batch(BATCHES, loss).predict(batch=-1)
