"""What an effect is worth: shrunken by what chance explains, and as a share of the baseline's training."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from fromscratch.errors import UsageError
from fromscratch.studies.contrasts import Floats


def shrink(effects: ArrayLike, standard_errors: ArrayLike) -> Floats:
    """Moves the estimated effects of a study's arms towards 0, against the winner's curse: [arms].

    True effects are normal with mean 0 and variance A over the arms. A solves sum(d^2 / (v + A)) = number of arms, or
    is 0. Each effect becomes d A / (A + v). Empirical Bayes: Efron and Morris 1975, "Data analysis using Stein's
    estimator and its generalizations"; the estimate of A is Paule and Mandel's (1982) with a known mean. The control's
    error, which all arms share, is treated as independent.
    """
    d, v = np.asarray(effects, dtype=np.float64), np.asarray(standard_errors, dtype=np.float64) ** 2
    if not len(d):
        return d

    def excess(prior: float) -> float:
        return float((d**2 / (v + prior)).sum()) - len(d)

    if excess(0.0) <= 0:
        return np.zeros_like(d)
    prior = optimize.brentq(excess, 0.0, float((d**2).sum()))
    return d * prior / (prior + v)


def _blocks(steps: ArrayLike, losses: ArrayLike) -> tuple[Floats, Floats]:
    """The curve made monotone by isotonic regression: mean step and loss of each block, losses falling strictly."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(x) != len(y) or len(x) < 2 or not np.isfinite(y).all() or not (np.diff(x) > 0).all():
        raise UsageError(
            f"loss curve of {len(x)} steps and {len(y)} losses: needs at least 2 finite losses at increasing steps"
        )
    fit = optimize.isotonic_regression(y, increasing=False)
    starts = fit.blocks[:-1]
    counts = np.diff(fit.blocks)
    middle = np.add.reduceat(x, starts) / counts
    return middle, fit.x[starts]


def share_of_training(effect: float, steps: ArrayLike, losses: ArrayLike) -> float | None:
    """Returns how much of the baseline's training an effect is worth, on the baseline's own held-out loss curve.

    An arm that is better by e nats is worth the steps that the baseline took for its last e nats, as a share of all
    its steps: 0.03 is 3% of the training. Above 0 for effects below 0 (better), and the reverse. Between evaluations
    the curve is linear; rises that noise makes are levelled by isotonic regression. Times the price of a baseline run,
    the share is in dollars.

    Returns None for an effect larger than what the whole curve covers. Raises UsageError for a curve with fewer than
    two points.
    """
    x, y = _blocks(steps, losses)
    level = y[-1] + abs(effect)
    if level > y[0]:
        return None
    earlier = float(np.interp(level, y[::-1], x[::-1]))
    return math.copysign((x[-1] - earlier) / float(np.asarray(steps)[-1]), -effect)


def effect_of_share(share: float, steps: ArrayLike, losses: ArrayLike) -> float:
    """Returns the effect in nats that is worth a share of the baseline's training: the inverse of the above.

    With share 0.01 it is the default of the smallest effect of interest. Raises UsageError for a share that the curve
    does not cover, and for a curve that does not fall there.
    """
    x, y = _blocks(steps, losses)
    if len(x) < 2:
        raise UsageError("the loss curve does not fall; give the smallest effect of interest in nats")
    earlier = x[-1] - share * float(np.asarray(steps)[-1])
    if not x[0] <= earlier < x[-1]:
        raise UsageError(f"share of training {share}: must be above 0 and within the loss curve's steps")
    return float(np.interp(earlier, x, y) - y[-1])
