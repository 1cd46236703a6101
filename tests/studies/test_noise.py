"""Spreads: pooled, borrowed, and without the noise of the test set."""

import math

import numpy as np
import pytest

from fromscratch.errors import UsageError
from fromscratch.studies.noise import (
    Spread,
    disagreement,
    pool,
    spread_within_arms,
    spread_within_seeds,
    variance_over_test_sets,
    without_test_noise,
)


def test_pooling_weighs_by_degrees_of_freedom() -> None:
    assert pool([Spread(4.0, 1), None, Spread(1.0, 3)]) == Spread(7 / 4, 4)
    assert pool([Spread(4.0, 1), Spread(1.0, math.inf)]) == Spread(1.0, math.inf)
    assert pool([None]) is None
    with pytest.raises(UsageError, match="cannot be pooled"):
        pool([Spread(1.0, 1), Spread(1.0, 1, paired=True)])


def test_the_spread_within_arms_by_hand() -> None:
    spread = spread_within_arms({"a": {1: 3.0, 2: 5.0}, "b": {1: 10.0, 2: 11.0, 3: 12.0}, "c": {1: 0.0}, "d": {}})
    assert spread == Spread((2.0 + 2.0) / 3, 3)
    assert spread_within_arms({"a": {1: 3.0}}) is None
    assert spread_within_arms({"a": {1: 3.0, 2: 3.0}}) is None


def test_the_spread_within_seeds_leaves_out_what_seeds_share() -> None:
    generator = np.random.default_rng(0)
    arms, seeds = range(40), range(12)
    shared = 5 * generator.standard_normal(12)
    losses = {str(a): {s: a + shared[s] + 0.5 * float(generator.standard_normal()) for s in seeds} for a in arms}
    spread = spread_within_seeds(losses)
    assert spread is not None
    assert (spread.df, spread.paired) == (39 * 11, True)
    assert spread.standard_deviation == pytest.approx(0.5, rel=0.1)
    del losses["3"][4]
    fewer = spread_within_seeds(losses)
    assert fewer is not None
    assert fewer.df == 39 * 11 - 1
    pair = {"a": {1: 1.0, 2: 2.0}, "b": {1: 1.0, 2: 4.0}}
    by_hand = spread_within_seeds(pair)
    assert by_hand is not None
    assert [by_hand.variance, by_hand.df] == pytest.approx([np.var([0.0, 2.0], ddof=1) / 2, 1])
    assert spread_within_seeds({"a": {1: 3.1, 2: 3.3, 3: 3.2}, "b": {1: 3.2, 2: 3.4, 3: 3.3}}) is None  # but rounding
    assert spread_within_seeds({"a": {1: 1.0, 2: 2.0}}) is None
    assert spread_within_seeds({}) is None


def test_the_noise_of_the_test_set_by_formula() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 150, size=500)
    nats = tokens * 3.4 + np.sqrt(tokens) * generator.standard_normal(500)
    loss = nats.sum() / tokens.sum()
    by_delta_method = ((nats - loss * tokens) ** 2).sum() / tokens.sum() ** 2
    assert variance_over_test_sets(nats, tokens) == pytest.approx(by_delta_method, rel=0.1)
    with pytest.raises(UsageError, match="at least 2"):
        variance_over_test_sets(nats[:1], tokens[:1])


def test_the_noise_of_the_test_set_is_subtracted_with_fewer_degrees_of_freedom() -> None:
    assert without_test_noise(Spread(4.0, 40), 2.0) == Spread(2.0, 10)
    assert without_test_noise(Spread(4.0, 40), 4.0) is None


def test_the_degrees_of_freedom_after_subtraction_describe_the_scatter() -> None:
    generator = np.random.default_rng(0)
    estimates = generator.chisquare(40, 20_000) / 40 * 3.0 - 1.0
    spread = without_test_noise(Spread(3.0, 40), 1.0)
    assert spread is not None
    assert 2 * np.mean(estimates) ** 2 / np.var(estimates) == pytest.approx(spread.df, rel=0.05)


def test_spreads_that_disagree() -> None:
    assert disagreement(Spread(1.0, 20), Spread(9.0, 50)) < 0.001
    assert disagreement(Spread(9.0, 20), Spread(1.0, math.inf)) < 0.001
    assert disagreement(Spread(1.0, 20), Spread(1.2, 50)) > 0.3


@pytest.mark.parametrize(("variance", "df"), [(0.0, 3), (1.0, 0), (math.nan, 3), (math.inf, 3)])
def test_impossible_spreads_are_refused(variance: float, df: float) -> None:
    with pytest.raises(UsageError, match="degrees of freedom"):
        Spread(variance, df)
