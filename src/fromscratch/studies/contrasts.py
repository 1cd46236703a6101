"""The difference of two arms: an estimate, how much was observed, and the spread it is measured against.

All designs work on a ``Contrast``. It is the sufficient statistic of a linear model with normal noise: each arm has a
mean, pairs share an effect of their seed, and all runs have the same variance. Fields are numbers, or arrays of one
shape for many studies or looks at once.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fromscratch.studies.noise import Spread

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Summary of the losses of one arm, or of the differences of pairs."""

    number: Floats
    mean: Floats
    """NaN where the number is 0."""
    squares: Floats
    """Sum of the squared deviations from the mean."""

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """Summarises the last axis: [..., N] to [...]."""
        array = np.asarray(values, dtype=np.float64)
        number = np.full(array.shape[:-1], array.shape[-1], dtype=np.float64)
        if not array.shape[-1]:
            return cls(number, np.full_like(number, np.nan), np.zeros_like(number))
        mean = array.mean(axis=-1)
        return cls(number, mean, ((array - mean[..., None]) ** 2).sum(axis=-1))

    @classmethod
    def running(cls, values: ArrayLike) -> Self:
        """Summarises the first 1, 2, ..., N values of the last axis: [..., N] to [..., N]."""
        array = np.asarray(values, dtype=np.float64)
        number = np.arange(1.0, array.shape[-1] + 1)
        first = array[..., :1]  # sums of squares near 0 keep their digits
        mean = (array - first).cumsum(axis=-1) / number
        squares = ((array - first) ** 2).cumsum(axis=-1) - number * mean**2
        return cls(np.broadcast_to(number, array.shape), mean + first, np.maximum(squares, 0.0))

    def at(self, index: Any) -> Self:
        """Selects along the last axis."""
        return type(self)(self.number[..., index], self.mean[..., index], self.squares[..., index])


@dataclass(frozen=True)
class Contrast:
    """Loss of an arm minus loss of the control, in nats; below 0 is better than the control."""

    estimate: Floats
    information: Floats
    """The variance of the estimate is ``variance / information``; 0 where an arm has no run."""
    variance: Floats
    """Estimated variance of one run; of what pairs do not share, for pairs. NaN without degrees of freedom."""
    df: Floats
    """Degrees of freedom of the variance; infinite where it is known."""

    @property
    def standard_error(self) -> Floats:
        """Of the estimate, in nats."""
        return np.sqrt(self.variance / self.information)


def harmonic(number: Floats, other: Floats) -> Floats:
    """Returns the information about the difference of two means of so many runs each; 0 where one has none."""
    return number * other / np.maximum(number + other, 1)


def compare_arms(control: Sample, arm: Sample, borrowed: Spread | None = None) -> Contrast:
    """Compares two arms by all their runs, with the variance pooled over both and the borrowed spread."""
    information = harmonic(control.number, arm.number)
    own_df = np.maximum(control.number - 1, 0) + np.maximum(arm.number - 1, 0)
    return _contrast(arm.mean - control.mean, information, control.squares + arm.squares, own_df, borrowed)


def compare_pairs(differences: Sample, borrowed: Spread | None = None) -> Contrast:
    """Compares two arms by the differences (arm minus control) of runs with the same seed."""
    own_df = np.maximum(differences.number - 1, 0)
    return _contrast(differences.mean, differences.number / 2, differences.squares / 2, own_df, borrowed)


def _contrast(
    estimate: Floats, information: Floats, squares: Floats, own_df: Floats, borrowed: Spread | None
) -> Contrast:
    df = own_df
    if borrowed is not None and math.isinf(borrowed.df):
        variance, df = np.full_like(own_df, borrowed.variance), np.full_like(own_df, np.inf)
    else:
        if borrowed is not None:
            squares, df = squares + borrowed.variance * borrowed.df, own_df + borrowed.df
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(df > 0, squares / df, np.nan)
    return Contrast(np.asarray(estimate), np.asarray(information), np.asarray(variance), np.asarray(df))


class Design(Protocol):
    """Turns contrasts into p-values and intervals."""

    def p_different(self, contrast: Contrast) -> Floats:
        """P-value of the hypothesis that the arms do not differ; 1 where nothing can be said."""

    def p_equivalent(self, contrast: Contrast, margin: float) -> Floats:
        """P-value of the hypothesis that the arms differ by ``margin`` or more."""

    def radius(self, contrast: Contrast, alpha: float) -> Floats:
        """Half the width of the interval of level ``1 - alpha``; infinite where nothing can be said."""
