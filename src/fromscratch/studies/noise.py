"""The spread of final losses between seeds: estimated, pooled, borrowed, and apart from the noise of the test set.

A spread is a variance with its degrees of freedom. Spreads of one setting (model, data, schedule) are pooled over the
arms of a study and over past studies, on the assumption that an intervention moves the mean and not the spread.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fromscratch.errors import UsageError
from fromscratch.evaluation.bootstrap import bootstrap_losses

ROUNDING = 1e-9
"""Standard deviation, in nats, below which losses differ by rounding alone."""
Losses = Mapping[str, Mapping[int, float]]
"""Final losses by arm and seed."""


@dataclass(frozen=True)
class Spread:
    """How much the final losses of runs that differ by the seed alone differ."""

    variance: float
    """Variance of one run, in nats squared."""
    df: float
    """Degrees of freedom of the variance; infinite where it is known."""
    paired: bool = False
    """Whether it is what remains after the effect that runs with the same seed share. A spread of pairs can only be
    borrowed for pairs: the variance of the difference of a pair is twice this."""

    def __post_init__(self) -> None:
        if not (self.df > 0 and self.variance > 0 and math.isfinite(self.variance)):
            raise UsageError(
                f"spread with variance {self.variance} and {self.df} degrees of freedom: both must be above 0; "
                "repeat an arm with at least two seeds to measure a spread"
            )

    @property
    def standard_deviation(self) -> float:
        """In nats."""
        return math.sqrt(self.variance)


def measured_spread(squares: float, df: float, *, paired: bool = False) -> Spread | None:
    """Returns the spread of a sum of squares; None without degrees of freedom, or where losses differ by rounding."""
    return Spread(squares / df, df, paired) if df > 0 and squares / df > ROUNDING**2 else None


def pool(spreads: Iterable[Spread | None]) -> Spread | None:
    """Pools independent estimates of the same variance, weighted by degrees of freedom; None entries are skipped.

    A known variance (infinite degrees of freedom) replaces the estimates. Raises UsageError for spreads of pairs
    mixed with spreads of single runs.
    """
    given = [spread for spread in spreads if spread is not None]
    if not given:
        return None
    if len({spread.paired for spread in given}) > 1:
        raise UsageError("a spread of pairs and a spread of single runs cannot be pooled; choose one of the two")
    if known := [spread for spread in given if math.isinf(spread.df)]:
        return known[0]
    df = sum(spread.df for spread in given)
    return Spread(sum(spread.variance * spread.df for spread in given) / df, df, given[0].paired)


def spread_within_arms(losses: Losses) -> Spread | None:
    """Pools the variance between the seeds of each arm; None where no arm has two runs or no two losses differ."""
    arms = [np.array(list(by_seed.values())) for by_seed in losses.values() if by_seed]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in arms)
    df = sum(len(values) - 1 for values in arms)
    return measured_spread(squares, df)


def spread_within_seeds(losses: Losses) -> Spread | None:
    """Returns the variance that remains after an effect of each arm and of each seed (a two-way layout, additive).

    Needs at least two arms with at least two seeds in common, else None. Missing runs are allowed: the effects are
    least-squares estimates. Source: Scheffe 1959, "The Analysis of Variance", chapter 4.
    """
    rows = [(arm, seed, loss) for arm, by_seed in losses.items() for seed, loss in by_seed.items()]
    names = [*((0, arm) for arm in losses), *((1, seed) for seed in sorted({seed for _, seed, _ in rows}))]
    column = {name: index for index, name in enumerate(names)}
    design = np.zeros((len(rows), len(names)))
    for index, (arm, seed, _) in enumerate(rows):
        design[index, [column[0, arm], column[1, seed]]] = 1
    if not rows:
        return None
    values = np.array([loss for *_, loss in rows])
    values -= values.mean()
    effects, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    df = len(rows) - int(rank)
    squares = float(((values - design @ effects) ** 2).sum())
    return measured_spread(squares, df, paired=True)


def disagreement(one: Spread, other: Spread) -> float:
    """Returns the two-sided p-value of an F test that two independent spreads have the same variance."""
    df_one, df_other = min(one.df, 1e9), min(other.df, 1e9)  # scipy knows no infinite degrees of freedom here
    upper = float(stats.f.sf(one.variance / other.variance, df_one, df_other))
    return 2 * min(upper, 1 - upper)


def variance_over_test_sets(nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> float:
    """Returns the variance of the loss over test sets of the same size, by bootstrap over documents.

    Args:
        nats: Sum of the losses of each document; of the differences, for the variance of an effect: [documents].
        tokens: Predicted tokens of each document: [documents].

    Raises UsageError for fewer than two documents.
    """
    if len(nats) < 2:
        raise UsageError(f"a test set of {len(nats)} documents has no measurable noise; at least 2 are needed")
    return float(bootstrap_losses(nats, tokens).var(ddof=1))


def without_test_noise(total: Spread, test_variance: float) -> Spread | None:
    """Subtracts the noise of the test set from the spread of runs that were measured on different test sets.

    Runs measured on one test set share its noise: their spread needs no subtraction. Degrees of freedom are
    Satterthwaite's (1946, "An approximate distribution of estimates of variance components"). Returns None where
    nothing remains: the noise of the seeds cannot be told from the noise of the test set.
    """
    variance = total.variance - test_variance
    if variance <= 0:
        return None
    return Spread(variance, (variance / total.variance) ** 2 * total.df, total.paired)
