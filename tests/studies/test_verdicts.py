"""What a study may say, and what it must not."""

import math
import re
from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats

from fromscratch.errors import UsageError
from fromscratch.studies.noise import Spread
from fromscratch.studies.verdicts import StudyResult, Verdict, judge_study
from tests.conftest import REPOSITORY

SPREAD = 0.0011
REGISTRY = Spread(SPREAD**2, 479)
MARGIN = 0.0015
Losses = dict[str, dict[int, float | None]]


def draw(seeds: dict[str, int], effects: dict[str, float] | None = None, random_seed: int = 0) -> Losses:
    """Losses around 3.4 with the spread of the registry; arms and control have no seed in common."""
    generator = np.random.default_rng(random_seed)
    return {
        arm: {
            100 * index + seed: 3.4 + (effects or {}).get(arm, 0.0) + SPREAD * float(generator.standard_normal())
            for seed in range(number)
        }
        for index, (arm, number) in enumerate(seeds.items())
    }


def judge(losses: Losses, **options: Any) -> StudyResult:
    return judge_study(losses, "baseline", **{"margin": MARGIN, **options})


def verdicts(result: StudyResult) -> dict[str, Verdict]:
    return {arm.arm: arm.verdict for arm in result.arms}


@pytest.mark.parametrize("design", ["sequential", "fixed"])
def test_all_verdicts_with_a_borrowed_spread(design: Literal["sequential", "fixed"]) -> None:
    effects = {"good": -0.005, "bad": 0.005, "same": 0.0, "between": -0.001}
    losses = draw({"baseline": 60, "good": 30, "bad": 30, "same": 30, "between": 3}, effects, random_seed=3)
    result = judge(losses, borrowed=REGISTRY, design=design)
    assert verdicts(result) == {
        "good": Verdict.BETTER,
        "bad": Verdict.WORSE,
        "same": Verdict.NO_EFFECT,
        "between": Verdict.UNDECIDED,
    }
    assert result.correction == "Holm"
    good, _, same, between = result.arms
    assert good.effect is not None
    assert good.evidence is not None
    assert good.evidence.low < -0.005 < good.evidence.high < 0
    assert good.effect < (good.shrunken or 0.0) < 0
    assert same.evidence is not None
    assert -MARGIN < same.evidence.low < 0 < same.evidence.high < MARGIN
    assert between.seeds_to_decide is not None


def test_a_large_effect_is_found_without_a_registry_in_pairs_and_by_all_runs() -> None:
    generator = np.random.default_rng(1)
    shared = generator.standard_normal(8)
    losses: Losses = {
        arm: dict(enumerate(3.4 + shift + SPREAD * (shared + 0.3 * generator.standard_normal(8))))
        for arm, shift in (("baseline", 0.0), ("good", -0.001))
    }
    (paired,) = judge(losses).arms
    assert paired.paired
    assert paired.verdict == Verdict.BETTER
    other = {"baseline": losses["baseline"], "good": {seed + 50: loss for seed, loss in losses["good"].items()}}
    (separate,) = judge(other).arms
    assert not separate.paired
    assert separate.verdict == Verdict.UNDECIDED
    assert paired.effect == pytest.approx(separate.effect)


def test_one_seed_without_a_registry_is_unknown_and_with_one_may_be_decided() -> None:
    losses = draw({"baseline": 4, "good": 1, "other": 4}, {"good": -0.5})
    good = judge(losses).arms[0]
    assert good.verdict == Verdict.UNKNOWN
    assert good.evidence is None
    assert "registry" in good.reason
    assert judge(losses, borrowed=REGISTRY).arms[0].verdict == Verdict.BETTER


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_diverged_runs_count_against_their_arm_and_are_no_number(value: float) -> None:
    losses = draw({"baseline": 8, "good": 8, "bad": 8}, {"good": -0.01, "bad": 0.01})
    whole = judge(losses, borrowed=REGISTRY)
    losses["good"][999] = losses["bad"][999] = value
    result = judge(losses, borrowed=REGISTRY)
    assert verdicts(result) == {"good": Verdict.UNKNOWN, "bad": Verdict.WORSE}
    assert [arm.runs.diverged for arm in result.arms] == [(999,), (999,)]
    assert [arm.effect for arm in result.arms] == [arm.effect for arm in whole.arms]
    assert "1 of 9 runs of good diverged" in result.arms[0].reason


def test_diverged_runs_of_the_control_forbid_worse_and_are_warned_of() -> None:
    losses = draw({"baseline": 8, "good": 8, "bad": 8}, {"good": -0.01, "bad": 0.01})
    losses["baseline"][999] = math.nan
    result = judge(losses, borrowed=REGISTRY)
    assert verdicts(result) == {"good": Verdict.BETTER, "bad": Verdict.UNKNOWN}
    assert result.warnings == ("1 of 9 runs of the control diverged",)


def test_an_arm_whose_runs_all_diverged_is_unknown() -> None:
    losses = draw({"baseline": 3, "wild": 0})
    losses["wild"] = {7: math.nan, 8: None}
    (wild,) = judge(losses, borrowed=REGISTRY).arms
    assert (wild.verdict, wild.effect) == (Verdict.UNKNOWN, None)
    assert "1 runs diverged, 1 are missing" in wild.reason


def test_missing_runs_are_left_out_of_a_sequential_study_and_stop_a_fixed_one() -> None:
    losses = draw({"baseline": 8, "good": 8}, {"good": -0.01})
    losses["good"][999] = None
    (good,) = judge(losses).arms
    assert (good.verdict, good.runs.missing) == (Verdict.BETTER, (999,))
    (good,) = judge(losses, design="fixed").arms
    assert (good.verdict, good.evidence) == (Verdict.UNKNOWN, None)
    assert "1 declared runs are missing" in good.reason


def test_seeds_that_change_nothing_are_unknown() -> None:
    equal: Losses = {"baseline": {1: 3.4, 2: 3.4, 3: 3.4}, "other": {4: 3.3, 5: 3.3, 6: 3.3}}
    additive: Losses = {"baseline": {1: 3.1, 2: 3.3, 3: 3.2}, "other": {1: 3.2, 2: 3.4, 3: 3.3}}  # but for rounding
    for losses in (equal, additive):
        (same,) = judge(losses).arms
        assert same.verdict == Verdict.UNKNOWN
        assert "no two seeds differ" in same.reason


def test_the_fixed_design_without_a_registry_is_the_textbooks() -> None:
    losses = draw({"baseline": 6, "a": 4, "b": 5}, {"a": -0.002})
    values = {arm: list(by_seed.values()) for arm, by_seed in losses.items()}
    result = judge(losses, design="fixed")
    assert result.correction == "Dunnett"
    expected = stats.dunnett(values["a"], values["b"], control=values["baseline"], random_state=0).pvalue
    assert [arm.evidence.p_different for arm in result.arms] == pytest.approx(expected, abs=1e-3)
    one = judge({arm: losses[arm] for arm in ("baseline", "a")}, design="fixed").arms[0]
    expected = stats.ttest_ind(values["a"], values["baseline"], equal_var=False).pvalue
    assert one.evidence.p_different == pytest.approx(expected)
    same_seeds: Losses = {arm: {**dict(enumerate(values[arm][:4]))} for arm in values}
    result = judge(same_seeds, design="fixed")
    expected = [stats.ttest_rel(values[arm][:4], values["baseline"][:4]).pvalue for arm in ("a", "b")]
    assert result.correction == "Holm"
    assert sorted(arm.evidence.p_different for arm in result.arms) == pytest.approx(
        sorted([min(expected) * 2, max(*expected, min(expected) * 2)])
    )


def test_a_real_effect_below_the_margin_is_better_and_called_small() -> None:
    losses = draw({"baseline": 200, "good": 200}, {"good": -0.0007})
    (good,) = judge(losses, borrowed=REGISTRY).arms
    assert good.verdict == Verdict.BETTER
    assert "less than the smallest effect of interest" in good.reason
    assert good.evidence.p_equivalent <= 0.05


def test_an_interval_that_only_holm_keeps_from_0_ends_there() -> None:
    """The clear arm is rejected at alpha / 2, so the other is tested at alpha; its interval has level alpha / 2."""
    known = Spread(1.0, math.inf)
    losses: Losses = {"baseline": {1: 0.0, 2: 0.0}, "clear": {3: -9.0, 4: -9.0}, "close": {5: 2.1, 6: 2.1}}
    clear, close = judge(losses, borrowed=known, design="fixed").arms
    assert (clear.verdict, close.verdict) == (Verdict.BETTER, Verdict.WORSE)
    assert 0.025 < close.evidence.p_different < 0.05
    assert (close.evidence.low, close.evidence.high) == (0.0, pytest.approx(2.1 + stats.norm.isf(0.0125)))


@pytest.mark.parametrize("design", ["sequential", "fixed"])
def test_arms_without_a_verdict_yet_count_in_the_correction(design: str) -> None:
    losses = draw({"baseline": 4, "a": 4}, {"a": -0.002})
    alone = judge(losses, design=design, borrowed=REGISTRY).arms[0]
    with_wild: Losses = {**losses, "wild": {900: math.nan}}
    both = judge(with_wild, design=design, borrowed=REGISTRY).arms[0]
    assert both.evidence.p_different == pytest.approx(2 * alone.evidence.p_different)
    assert both.evidence.low < alone.evidence.low


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "statistics.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.startswith("better the loss changes by -0.0055 nats")


def test_the_other_arms_lend_their_spread() -> None:
    losses = draw({"baseline": 4, "a": 3, "b": 3, "c": 3})
    assert [arm.spread.df for arm in judge(losses).arms] == [3 + 3 * 2] * 3
    assert judge(losses, borrowed=REGISTRY).arms[0].spread.df == 479 + 9
    paired: Losses = {arm: dict(enumerate(list(losses[arm].values())[:3])) for arm in losses}
    result = judge(paired).arms[0]
    assert (result.paired, result.spread.df) == (True, 2 + 2)


def test_a_registry_of_another_setting_is_noticed() -> None:
    losses = draw({"baseline": 12, "a": 12})
    assert judge(losses, borrowed=REGISTRY).warnings == ()
    (warning,) = judge(losses, borrowed=Spread((3 * SPREAD) ** 2, 100)).warnings
    assert "F test" in warning


def test_the_forecast_of_seeds_comes_true_if_estimate_and_spread_stay() -> None:
    known = Spread(SPREAD**2, math.inf)  # runs at the mean of their arm would lower an estimated spread
    losses = draw({"baseline": 4, "a": 4}, {"a": -0.0020}, random_seed=6)
    (before,) = judge(losses, borrowed=known).arms
    assert before.verdict == Verdict.UNDECIDED
    assert before.seeds_to_decide is not None
    assert before.seeds_to_decide > 1
    means = {arm: float(np.mean([loss for loss in by_seed.values() if loss])) for arm, by_seed in losses.items()}
    for further, expected in (
        (before.seeds_to_decide - 1, Verdict.UNDECIDED),
        (before.seeds_to_decide, Verdict.BETTER),
    ):
        more = {
            arm: {**by_seed, **dict.fromkeys(range(1_000, 1_000 + further), means[arm])}
            for arm, by_seed in losses.items()
        }
        assert judge(more, borrowed=known).arms[0].verdict == expected


def test_whole_studies_of_ten_arms_without_effects_are_seldom_decided() -> None:
    """End to end, with three looks at each study."""
    decided = 0
    for study in range(120):
        losses = draw({"baseline": 16, **{f"arm-{i}": 5 for i in range(10)}}, random_seed=study)
        looks = [{arm: dict(list(by_seed.items())[:n]) for arm, by_seed in losses.items()} for n in (2, 3, 16)]
        decided += any(
            {Verdict.BETTER, Verdict.WORSE} & set(verdicts(judge(look, borrowed=Spread(SPREAD**2, 10))).values())
            for look in looks
        )
    assert decided / 120 <= 0.05, f"{decided} of 120 studies"


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ({"a": {1: 3.0}}, {}, "needs the control 'baseline'"),
        ({"baseline": {1: 3.0}}, {}, "and another arm"),
        ({"baseline": {1: 3.0}, "a": {1: 3.0}}, {"margin": 0.0}, "smallest effect"),
        ({"baseline": {1: 3.0}, "a": {1: 3.0}}, {"alpha": 0.7}, "alpha 0.7"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(losses: Losses, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        judge(losses, **options)
