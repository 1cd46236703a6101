"""The e-process: equal to published numbers and to direct integration, a martingale, and right at every look."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from fromscratch.studies.contrasts import Contrast, Sample, compare_arms, compare_pairs
from fromscratch.studies.evalues import EFFECT_SCALE, Sequential, log_e_value
from fromscratch.studies.fixed import Fixed
from fromscratch.studies.noise import Spread
from fromscratch.studies.power import simulate
from tests.studies.documented import documented

STUDIES = 2_000
DIFFERENCES = [-0.0031, -0.0009, -0.0024, -0.0042, 0.0003, -0.0027, -0.0018]
SETTINGS: dict[str, dict[str, Any]] = {
    "separate arms": {},
    "separate arms, seeds correlate by 0.5": {"correlation": 0.5},
    "separate arms, three control runs per run": {"control_ratio": 3.0},
    "pairs": {"paired": True},
    "pairs, seeds correlate by 0.5": {"paired": True, "correlation": 0.5},
    "borrowed spread, 4 degrees of freedom": {"df": 4.0},
    "borrowed spread, 10 degrees of freedom": {"df": 10.0},
    "borrowed spread, 40 degrees of freedom": {"df": 40.0},
    "known spread": {"df": math.inf},
    "pairs, borrowed spread, 4 degrees of freedom": {"df": 4.0, "paired": True},
    "borrowed spread, 4 degrees of freedom, three control runs per run": {"df": 4.0, "control_ratio": 3.0},
}


def ever(events: np.ndarray[Any, Any]) -> float:
    """The share of studies in which something happens at some look."""
    return float(events.any(axis=-1).mean())


class TestPublishedNumbers:
    """Of expectation 0.6.1 on PyPI (which needs Python 3.12), recorded."""

    def test_unknown_spread(self) -> None:
        """``TtestGaussianMixtureMartingale(prior_precision=2**-0.5).log_superMG`` after 2 to 7 differences."""
        recorded = [
            0.14772617747724093,
            0.9542311611090198,
            1.5824063974381999,
            0.9041956696717184,
            1.7089538067789798,
            2.3929574115097125,
        ]
        ours = log_e_value(compare_pairs(Sample.running(DIFFERENCES)))
        assert ours[1:] == pytest.approx(recorded, rel=1e-9)
        assert ours[0] == 0.0

    def test_known_spread(self) -> None:
        """``TwoSidedNormalMixture`` with rho = 0.5: ``log_superMG``, and ``bound`` at 1 / 0.05, in nats."""
        log_e = [0.7743853157210413, 0.5175950933697263, 1.4449906161453057, 4.060249052011409, 2.7864017249832327]
        radius = [
            0.005073162614569655,
            0.003390628993278003,
            0.002733121204705612,
            0.002360810567437556,
            0.002113408424351087,
        ]
        contrast = compare_pairs(Sample.running(DIFFERENCES[:5]), Spread(0.0011**2, math.inf, paired=True))
        assert log_e_value(contrast) == pytest.approx(log_e, rel=1e-9)
        assert Sequential().radius(contrast, 0.05) == pytest.approx(radius, rel=1e-9)


def marginal(control: list[float], arm: list[float], earlier: list[float], scale: float) -> float:
    """Integrates the likelihood over means (flat), log spread (flat) and the standardised effect (normal)."""
    groups = [np.array(group) for group in (control, arm, earlier)]
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    number = sum(len(group) for group in groups)
    mean_difference = groups[1].mean() - groups[0].mean()

    def likelihood(effect: float, log_spread: float) -> float:
        """With the three means integrated out, up to a factor that the ratio does not have."""
        spread = math.exp(log_spread)
        variance_of_difference = spread**2 * (1 / len(control) + 1 / len(arm))
        # A flat mean of each group takes one factor of the spread; the effect leaves a density of the difference.
        within = spread ** -(number - 3) * math.exp(-squares / (2 * spread**2))
        return within * stats.norm.pdf(mean_difference, effect * spread, math.sqrt(variance_of_difference))

    if scale == 0:
        return integrate.quad(lambda log_spread: likelihood(0.0, log_spread), -5, 5, epsrel=1e-9)[0]
    return integrate.dblquad(
        lambda effect, log_spread: likelihood(effect, log_spread) * stats.norm.pdf(effect, 0, scale),
        -5,
        5,
        -8 * scale,
        8 * scale,
        epsrel=1e-6,
    )[0]


def test_equals_direct_integration_of_the_likelihoods() -> None:
    control, arm, earlier = [0.3, -0.5, 1.1], [2.2, 1.4], [0.2, -0.9, 0.4, 0.6]
    by_integration = math.log(marginal(control, arm, earlier, EFFECT_SCALE) / marginal(control, arm, earlier, 0.0))
    borrowed = Spread(float(np.var(earlier, ddof=1)), len(earlier) - 1)
    ours = log_e_value(compare_arms(Sample.of(control), Sample.of(arm), borrowed))
    assert float(ours) == pytest.approx(by_integration, abs=1e-4)


def test_the_formula_for_many_degrees_of_freedom_approaches_the_known_spread() -> None:
    arms = Sample.of([3.1, 3.4]), Sample.of([3.0, 3.3])
    almost = log_e_value(compare_arms(*arms, Spread(0.04, 1e7)))
    assert almost == pytest.approx(log_e_value(compare_arms(*arms, Spread(0.04, math.inf))), abs=1e-5)


def error_rates(setting: dict[str, Any]) -> list[float]:
    """Shares of studies, looked at after every seed, with a false verdict, a missed truth, a false equivalence."""
    rule = Sequential()
    equal = simulate(0.0, 30, repetitions=STUDIES, **setting)
    planted = simulate(1.5, 30, repetitions=STUDIES, random_seed=1, **setting)
    at_margin = simulate(1.0, 30, repetitions=STUDIES, random_seed=2, **setting)
    return [
        ever(rule.p_different(equal) <= 0.05),
        ever(np.abs(planted.estimate - 1.5) > rule.radius(planted, 0.05)),
        ever(rule.p_equivalent(at_margin, 1.0) <= 0.05),
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_looking_after_every_seed_errs_in_at_most_5_percent_and_as_documented(name: str) -> None:
    rates = error_rates(SETTINGS[name])
    stated = {row[0]: [float(cell.rstrip("%")) / 100 for cell in row[1:]] for row in documented("Measured error rates")}
    assert max(rates) <= 0.05, f"{name}, {STUDIES} studies: false verdicts, misses, false equivalence {rates}"
    assert rates == pytest.approx(stated[name], abs=0.004), f"{name}: {rates}"


def test_a_t_test_looked_at_after_every_pair_is_the_fault_that_this_mends() -> None:
    contrast = simulate(0.0, 10, paired=True, repetitions=STUDIES)
    rate = ever(Fixed().p_different(contrast) <= 0.05)
    assert 0.14 < rate < 0.22, f"false verdicts in {rate:.1%}"


def test_a_borrowed_spread_is_not_taken_for_known() -> None:
    contrast = simulate(0.0, 30, df=4.0, repetitions=STUDIES)
    as_known = Contrast(contrast.estimate, contrast.information, contrast.variance, np.full_like(contrast.df, np.inf))
    rate = ever(Sequential().p_different(as_known) <= 0.05)
    assert rate > 0.05, f"false verdicts in {rate:.1%}, so the degrees of freedom would not matter"


@pytest.mark.parametrize("df", [1.0, 4.0, 40.0, math.inf])
@pytest.mark.parametrize("information", [0.5, 2.0, 12.0])
def test_the_mean_e_value_under_the_null_is_1(df: float, information: float) -> None:
    """Exactly, by integration over Student's t with the same degrees of freedom."""

    def weighted(t: float) -> float:
        estimate = np.array(t / math.sqrt(information))
        log_e = log_e_value(Contrast(estimate, np.array(information), np.array(1.0), np.array(df)))
        return math.exp(float(log_e) + float(stats.t.logpdf(t, df)))

    assert 2 * integrate.quad(weighted, 0, math.inf)[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("effect", [2.0, 8.0])
def test_dropping_decided_arms_leaves_the_error_rate_of_the_others(effect: float) -> None:
    """Nine arms lend their spread to a tenth without effect, and each stops at its first verdict."""
    generator = np.random.default_rng(0)
    control, equal = (Sample.running(generator.standard_normal((STUDIES, 1, 30))) for _ in range(2))
    others = Sample.running(generator.standard_normal((STUDIES, 9, 30)) + effect)
    decided = Sequential().p_different(compare_arms(control, others)) <= 0.05
    last = np.where(decided.any(axis=-1), decided.argmax(axis=-1), 29)[..., None]
    kept = np.minimum(np.arange(30), last)
    own = compare_arms(control, equal)
    df = own.df + kept.sum(axis=1, keepdims=True)
    squares = equal.squares + control.squares + np.take_along_axis(others.squares, kept, -1).sum(axis=1, keepdims=True)
    pooled = Contrast(own.estimate, own.information, squares / np.maximum(df, 1), df)
    rate = ever((Sequential().p_different(pooled) <= 0.05)[:, 0])
    assert rate <= 0.03, f"false verdicts in {rate:.1%} of {STUDIES} studies"


def test_equivalence_is_found_where_it_is_true() -> None:
    found = Sequential().p_equivalent(simulate(0.0, 60, df=40.0, repetitions=500), 1.0) <= 0.05
    assert ever(found) > 0.8


def test_the_interval_and_the_two_p_values_agree() -> None:
    contrast = simulate(1.0, 12, df=3.0, repetitions=300, random_seed=3)
    radius = Sequential().radius(contrast, 0.1)
    assert ((np.abs(contrast.estimate) > radius) == (Sequential().p_different(contrast) < 0.1)).all()
    inside = np.abs(contrast.estimate) + radius < 2.0
    assert (inside == (Sequential().p_equivalent(contrast, 2.0) < 0.1)).all()
    assert inside.any()


@pytest.mark.parametrize("losses", [([], [3.0]), ([3.0], [3.1]), ([3.0, 3.0], [3.1, 3.1])])
def test_without_a_spread_there_is_no_evidence(losses: tuple[list[float], list[float]]) -> None:
    contrast = compare_arms(Sample.of(losses[0]), Sample.of(losses[1]))
    assert float(Sequential().p_different(contrast)) == float(Sequential().p_equivalent(contrast, 0.5)) == 1.0
    assert float(Sequential().radius(contrast, 0.05)) == math.inf


def test_the_unit_of_the_loss_changes_nothing() -> None:
    control, arm = np.array([3.2, 3.3, 3.1]), np.array([3.0, 2.9])
    here, there = (compare_arms(Sample.of(control * k + 7), Sample.of(arm * k + 7)) for k in (1.0, 1e-3))
    assert float(log_e_value(here)) == pytest.approx(float(log_e_value(there)), rel=1e-6)
    assert Sequential().radius(there, 0.2) == pytest.approx(Sequential().radius(here, 0.2) * 1e-3, rel=1e-6)
