"""Fits: known curves are found, intervals cover, extrapolation is warned of."""

import math

import numpy as np
import pytest

from fromscratch.errors import UsageError
from fromscratch.studies.fits import critical_batch, fit_best_batch, fit_line, fit_power_law

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


def test_the_critical_batch_of_simulated_gradients() -> None:
    generator = np.random.default_rng(0)
    gradient, noise = np.full(50, 0.2), 1.5
    norms = {}
    for batch in (8, 128):
        draws = gradient + noise / math.sqrt(batch) * generator.standard_normal((4_000, 50))
        norms[batch] = float((draws**2).sum(axis=1).mean())
    found = critical_batch(8, norms[8], 128, norms[128])
    assert found == pytest.approx(50 * noise**2 / (50 * 0.2**2), rel=0.05)
    assert critical_batch(8, 1.0, 128, 2.0) is None
    with pytest.raises(UsageError, match="the smaller one"):
        critical_batch(128, 1.0, 8, 2.0)
