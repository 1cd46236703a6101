"""Power: the recorded facts, what simulation finds, and what the documentation states."""

import math
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from fromscratch.studies.evalues import Sequential
from fromscratch.studies.fixed import Fixed
from fromscratch.studies.noise import Spread
from fromscratch.studies.power import (
    control_seeds,
    power_by_seeds,
    simulate,
    smallest_detectable_effect,
)
from fromscratch.studies.report import _what_could_be_seen
from fromscratch.studies.results import Judgement
from fromscratch.studies.verdicts import judge_study
from tests.studies.documented import documented

GPT2_SMALL = Spread(0.0011**2, 479)
"""Of 520 public runs in 41 arms."""
DESIGNS: tuple[Literal["sequential", "fixed"], ...] = ("fixed", "sequential")


def test_the_smallest_effects_that_public_runs_show() -> None:
    found = [smallest_detectable_effect(seeds, GPT2_SMALL, design="fixed") for seeds in (1, 2, 3, 5, 10)]
    assert found == pytest.approx([0.0044, 0.0031, 0.0025, 0.0019, 0.0014], abs=0.00006)


def test_the_documented_smallest_effects() -> None:
    for seeds, *effects in documented("What a study can see"):
        for effect, design in zip(effects, DESIGNS, strict=True):
            found = smallest_detectable_effect(int(seeds), GPT2_SMALL, design=design)
            assert found == pytest.approx(float(effect), abs=0.0001), f"{seeds} seeds, {design}: {found}"


def test_the_documented_numbers_of_seeds() -> None:
    for effect, borrowed, *numbers in documented("Seeds needed"):
        df = 0.0 if borrowed == "none" else float(borrowed)
        spread = Spread(1.0, df or 1.0)
        for number, design in zip(numbers, DESIGNS, strict=True):
            reached = power_by_seeds(float(effect), 200, spread, design=design, borrow=df > 0) >= 0.8
            assert reached.any()
            found = int(np.argmax(reached)) + 1
            assert abs(found - int(number)) <= 1, f"effect {effect}, df {df}, {design}: {found}"


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("effect", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("df", [4.0, 40.0])
def test_planted_effects_are_found_at_the_stated_power(
    effect: float, df: float, design: Literal["fixed", "sequential"]
) -> None:
    stated = power_by_seeds(effect, 30, Spread(1.0, df), design=design)
    assert stated[-1] > 0.75
    contrast = simulate(effect, 30, df=df, repetitions=2_000, random_seed=11)
    right = contrast.estimate > 0
    if design == "fixed":
        found = ((Fixed().p_different(contrast) <= 0.05) & right).mean(axis=0)
    else:
        found = np.maximum.accumulate((Sequential().p_different(contrast) <= 0.05) & right, axis=-1).mean(axis=0)
    assert found == pytest.approx(stated, abs=0.05)


def test_the_pairs_of_the_simulation_correlate_as_told() -> None:
    contrast = simulate(0.0, 4, paired=True, correlation=0.5, repetitions=20_000)
    assert float(contrast.estimate[:, -1].var()) == pytest.approx(2 * (1 - 0.5) / 4, rel=0.05)
    assert float(contrast.variance[:, -1].mean()) == pytest.approx(1 - 0.5, rel=0.05)


def test_three_seeds_with_a_borrowed_spread_do_the_work_of_five() -> None:
    for design in DESIGNS:
        own = power_by_seeds(2.0, 5, Spread(1.0, 479), design=design, borrow=False)
        borrowed = power_by_seeds(2.0, 5, Spread(1.0, 479), design=design)
        assert borrowed[2] > own[3]
        assert borrowed[2] > own[4] - 0.13


def test_a_design_that_can_find_nothing_says_so() -> None:
    assert smallest_detectable_effect(1, GPT2_SMALL, design="fixed", borrow=False) is None
    pairs = Spread(0.0011**2, 40, paired=True)
    assert smallest_detectable_effect(2, pairs, borrow=False) is None
    known = power_by_seeds(1.0, 3, Spread(1.0, math.inf), design="fixed")
    assert known[0] == pytest.approx(stats.norm.sf(1.959964 - math.sqrt(0.5)))


def test_the_control_gets_the_square_root_of_the_number_of_arms_as_many_seeds() -> None:
    assert [control_seeds(arms, 3) for arms in (1, 4, 10)] == [3, 6, 9]
    # For 9 arms and a budget of 60 runs, no other split has a smaller variance of a comparison.
    variances = {seeds: 1 / seeds + 1 / (60 - 9 * seeds) for seeds in range(1, 7)}
    best = min(variances, key=lambda seeds: variances[seeds])
    assert 60 - 9 * best == control_seeds(9, best)


@pytest.mark.parametrize(("num_arms", "alpha"), [(1, 0.05), (1, 0.01), (4, 0.05)])
def test_the_report_says_what_a_study_of_so_many_arms_at_its_alpha_finds(num_arms: int, alpha: float) -> None:
    noise = np.random.default_rng(1).normal(3.0, 0.01, (num_arms + 1, 5))
    losses = {f"arm-{n}": dict(enumerate(row.tolist())) for n, row in enumerate(noise)}
    result = judge_study(losses, "arm-0", margin=0.01, alpha=alpha)
    spread = result.arms[0].spread
    assert spread is not None
    effect = smallest_detectable_effect(5, spread, alpha=alpha / num_arms)
    assert effect is not None
    sentence = _what_could_be_seen(Judgement(result, losses, 0.01, []), alpha)
    assert sentence.endswith(
        f"With 5 seeds, effects of {result.measure.amount(effect)} are found four times out of five."
    )
