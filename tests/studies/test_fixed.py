"""The fixed design: equal to scipy's tests, and right with a borrowed spread."""

import numpy as np
import pytest
from scipy import stats

from fromscratch.studies.contrasts import Sample, compare_arms, compare_pairs
from fromscratch.studies.corrections import holm
from fromscratch.studies.evalues import Sequential
from fromscratch.studies.fixed import Fixed, dunnett, welch
from fromscratch.studies.noise import Spread
from fromscratch.studies.power import simulate

STUDIES = 2_000
CONTROL = np.array([3.412, 3.409, 3.4155, 3.4101, 3.4122])
ARM = np.array([3.4081, 3.4032, 3.411, 3.4055])


def test_pairs_equal_the_paired_t_test() -> None:
    contrast = compare_pairs(Sample.of(ARM - CONTROL[:4]))
    expected = stats.ttest_rel(ARM, CONTROL[:4])
    assert float(Fixed().p_different(contrast)) == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    radius = float(Fixed().radius(contrast, 0.05))
    assert (contrast.estimate - radius, contrast.estimate + radius) == pytest.approx((low, high))


def test_separate_arms_equal_welchs_test_and_students_where_pooled() -> None:
    control, arm = Sample.of(CONTROL), Sample.of(ARM)
    for contrast, equal in ((welch(control, arm), False), (compare_arms(control, arm), True)):
        expected = stats.ttest_ind(ARM, CONTROL, equal_var=equal)
        assert float(Fixed().p_different(contrast)) == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.9)
        radius = float(Fixed().radius(contrast, 0.1))
        assert (contrast.estimate - radius, contrast.estimate + radius) == pytest.approx((low, high))


def test_equivalence_equals_two_one_sided_tests() -> None:
    contrast = compare_arms(Sample.of(CONTROL), Sample.of(ARM))
    above = stats.ttest_ind(ARM + 0.01, CONTROL, alternative="greater").pvalue
    below = stats.ttest_ind(ARM - 0.01, CONTROL, alternative="less").pvalue
    assert float(Fixed().p_equivalent(contrast, 0.01)) == pytest.approx(max(above, below))


def test_dunnett_equals_scipys_and_finds_equivalence() -> None:
    arms = [ARM, CONTROL + 0.0001]
    rows = dunnett(CONTROL, arms, 0.01, 0.05)
    expected = stats.dunnett(*arms, control=CONTROL, random_state=0)
    interval = expected.confidence_interval(0.95)
    assert rows[:, 0] == pytest.approx(expected.pvalue, abs=1e-3)
    assert rows[:, 2:] == pytest.approx(np.stack([interval.low, interval.high], axis=1), abs=1e-5)
    assert rows[0, 1] > rows[1, 1]
    assert rows[1, 1] < 0.05 < rows[1, 0]


@pytest.mark.parametrize("df", [4.0, 10.0, 40.0])
def test_with_a_borrowed_spread_errors_and_coverage_are_exact(df: float) -> None:
    contrast = simulate(0.0, 3, df=df, repetitions=4 * STUDIES)
    false = float((Fixed().p_different(contrast) <= 0.05)[:, -1].mean())
    assert false == pytest.approx(0.05, abs=0.008), f"false verdicts in {false:.1%}"
    planted = simulate(1.0, 3, df=df, repetitions=4 * STUDIES, random_seed=1)
    covered = float((np.abs(planted.estimate - 1.0) <= Fixed().radius(planted, 0.05))[:, -1].mean())
    assert covered == pytest.approx(0.95, abs=0.008), f"intervals cover in {covered:.1%}"
    equivalent = float((Fixed().p_equivalent(planted, 1.0) <= 0.05)[:, -1].mean())
    assert equivalent <= 0.058, f"false equivalence in {equivalent:.1%}"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([[0.9, 0.02]]) == pytest.approx(np.array([[0.9, 0.04]]))
    assert len(holm([])) == 0


@pytest.mark.parametrize("num_real", [0, 5])
def test_holm_over_ten_arms_looked_at_after_every_seed(num_real: int) -> None:
    """All arms share the control and the pooled spread; some have real effects, so that Holm's steps matter."""
    generator = np.random.default_rng(num_real)
    shape = STUDIES, 1, 12
    effects = np.where(np.arange(10) < num_real, 4.0, 0.0)[:, None]
    control = Sample.running(generator.standard_normal(shape))
    arms = Sample.running(generator.standard_normal((STUDIES, 10, 12)) + effects)
    contrast = compare_arms(control, arms)
    squares = arms.squares.sum(axis=1, keepdims=True) + control.squares
    df = np.broadcast_to(11 * (control.number - 1), contrast.df.shape)
    with np.errstate(invalid="ignore"):
        pooled = type(contrast)(contrast.estimate, contrast.information, squares / df, df)
    for evidence in (contrast, pooled):
        adjusted = np.moveaxis(holm(np.moveaxis(Sequential().p_different(evidence), 1, -1)), -1, 1)
        rejected = adjusted <= 0.05  # [studies, arms, looks]
        rate = float(rejected[:, num_real:].any(axis=(1, 2)).mean())
        assert rate <= 0.05, f"a false verdict in {rate:.1%} of {STUDIES} studies of ten arms"
        assert num_real == 0 or rejected[:, :num_real].any(axis=2).mean() > 0.95
        uncorrected = (Sequential().p_different(evidence) <= 0.05)[:, num_real:].any(axis=(1, 2)).mean()
        assert uncorrected > 0.05, f"{uncorrected:.1%} without correction: it would not be needed"


def test_a_fixed_spread_of_ten_arms_is_held_by_holm_at_one_look() -> None:
    generator = np.random.default_rng(4)
    control, arms = (Sample.of(generator.standard_normal((STUDIES, n, 5))) for n in (1, 10))
    rate = float(
        (holm(Fixed().p_different(compare_arms(control, arms, Spread(1.0, np.inf)))) <= 0.05).any(axis=1).mean()
    )
    assert 0.02 < rate <= 0.05, f"a false verdict in {rate:.1%}"
