"""Means, simultaneous intervals, verdicts, agreement, rank correlation, and prediction-powered inference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from scipy import stats

from fromscratch.evaluation.bootstrap import bootstrap_counts, bootstrap_interval
from fromscratch.judging.observations import Floats, Observations

LEVEL = 0.95
MIN_LABELS = 10
"""Below, the t interval of labels, which are 0, 1/2 and 1, is not to be trusted."""
BETTER, WORSE, NO_EFFECT = "better", "worse", "no effect larger than the margin"
UNDECIDED, UNKNOWN = "undecided", "unknown"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; None where it cannot be told."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def differs_from_zero(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


NOTHING = Estimate(None)


def mean_of(values: Floats) -> Estimate:
    """Returns the mean of the finite values with a bootstrap interval over them."""
    known = values[np.isfinite(values)]
    if not len(known):
        return NOTHING
    return Estimate(float(known.mean()), *bootstrap_interval(known, np.ones(len(known), dtype=np.int64)))


def percentile(value: float | None, samples: Floats) -> Estimate:
    """Returns an estimate with the percentile interval of its resamples."""
    known = samples[np.isfinite(samples)]
    if value is None or not len(known):
        return NOTHING
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def paired_differences(by_question: Floats, pairs: Sequence[tuple[int, int]]) -> list[Estimate]:
    """Returns the mean difference of each pair of columns over the questions that both have: [Q, M].

    The intervals hold together.
    """
    estimates, samples = [], []
    counts = bootstrap_counts(max(1, len(by_question)))
    for one, other in pairs:
        difference = by_question[:, one] - by_question[:, other]
        known = np.isfinite(difference)
        number = counts[:, known].sum(axis=1)
        sums = counts[:, known] @ difference[known]
        enough = known.sum() > 1
        estimates.append(float(difference[known].mean()) if known.any() else math.nan)
        samples.append(np.divide(sums, number, out=np.full(len(counts), np.nan), where=(number > 0) & enough))
    return simultaneous(np.array(estimates), np.array(samples).T)


def simultaneous(estimates: Floats, samples: Floats) -> list[Estimate]:
    """Returns intervals that all hold together with 95%, from resamples [R, K].

    The radius of each is its standard error times the quantile of the largest deviation of all, in standard errors
    (Romano and Wolf 2005, "Exact and approximate stepdown methods for multiple hypothesis testing", section 4).
    """
    known = np.isfinite(estimates) & np.isfinite(samples).any(axis=0)
    found = [Estimate(None if math.isnan(value) else float(value)) for value in estimates]
    if not known.any():
        return found
    drawn = samples[:, known]
    drawn = drawn[np.isfinite(drawn).any(axis=1)]  # others have none of the questions
    errors = np.nanstd(drawn, axis=0)
    deviations = np.abs(drawn - estimates[known])
    scaled = np.divide(deviations, errors, out=np.zeros_like(deviations), where=errors > 0)
    quantile = float(np.quantile(np.nanmax(scaled, axis=1), LEVEL))
    for index, error in zip(np.flatnonzero(known), errors, strict=True):
        value = float(estimates[index])
        found[index] = Estimate(value, value - quantile * float(error), value + quantile * float(error))
    return found


def verdict_of(difference: Estimate, margin: float) -> str:
    """Returns what a difference with its interval says about the first model, in the words of studies."""
    if difference.value is None or difference.low is None or difference.high is None:
        return UNKNOWN
    if difference.differs_from_zero:
        return BETTER if difference.value > 0 else WORSE
    return NO_EFFECT if max(-difference.low, difference.high) < margin else UNDECIDED


@dataclass(frozen=True)
class Agreement:
    """How often two raters prefer the same of two answers, or both say that they are equal."""

    comparisons: int
    raw: float | None
    kappa: float | None
    """Agreement beyond chance (Cohen 1960): 0 is chance, 1 is complete. None where all ratings are alike."""


def agreement_of(one: Floats, other: Floats) -> Agreement:
    """Compares two raters' preferences: 1, 0, or 1/2 for a tie. Probabilities count as the side they are on."""
    both = np.isfinite(one) & np.isfinite(other)
    number = int(both.sum())
    if not number:
        return Agreement(0, None, None)
    sides = np.array([np.sign(one[both] - 0.5), np.sign(other[both] - 0.5)])
    raw = float((sides[0] == sides[1]).mean())
    chance = float(sum((sides[0] == side).mean() * (sides[1] == side).mean() for side in (-1, 0, 1)))
    return Agreement(number, raw, (raw - chance) / (1 - chance) if chance < 1 else None)


def agreement_of_raters(observations: Observations) -> Agreement:
    """Compares successive raters (repeats; of pairs, both orders) over all questions and pairs of models."""
    ones, others = [np.empty(0)], [np.empty(0)]
    for a, b in combinations(range(len(observations.models)), 2):
        preferences = observations.preferences(a, b)
        for one, other in pairwise(preferences.T):
            ones.append(one)
            others.append(other)
    return agreement_of(np.concatenate(ones), np.concatenate(others))


def rank_correlation(scores: Floats, losses: Floats) -> tuple[float | None, float | None]:
    """Returns Spearman's correlation and its p-value by permutation; None for fewer than three different values."""
    if len(scores) < 3 or len(set(scores)) < 2 or len(set(losses)) < 2:
        return None, None
    correlation = float(stats.spearmanr(scores, losses).statistic)
    ranks = stats.rankdata(losses)

    def statistic(x: Floats) -> float:
        return float(np.corrcoef(stats.rankdata(x), ranks)[0, 1])

    test = stats.permutation_test((scores,), statistic, permutation_type="pairings", rng=np.random.default_rng(0))
    return correlation, float(test.pvalue)


def prediction_powered_mean(judged: Floats, judged_labelled: Floats, labels: Floats) -> Estimate:
    """Returns the mean label of all items with an interval corrected for the judge's errors.

    The mean judgement of the items without labels, plus the mean error of the judge on those with labels
    (Angelopoulos et al. 2023, "Prediction-powered inference", algorithm 1). It holds however wrong the judge is, if the
    labelled items were drawn at random. With Student's t, because labels are few.

    Args:
        judged: judgements of the items without labels: [N].
        judged_labelled: judgements of those with labels: [n].
        labels: what a person said of them: [n].
    """
    number = len(labels)
    if number < MIN_LABELS or len(judged) < 2:
        return NOTHING
    errors = labels - judged_labelled
    value = float(judged.mean() + errors.mean())
    error = math.sqrt(judged.var(ddof=1) / len(judged) + errors.var(ddof=1) / number)
    radius = float(stats.t.isf((1 - LEVEL) / 2, number - 1)) * error
    return Estimate(value, value - radius, value + radius)


def mean_of_labels(labels: Floats) -> Estimate:
    """Returns the mean of the labels alone with Student's t interval."""
    if len(labels) < MIN_LABELS:
        return Estimate(float(labels.mean())) if len(labels) else NOTHING
    radius = float(stats.t.isf((1 - LEVEL) / 2, len(labels) - 1) * labels.std(ddof=1) / math.sqrt(len(labels)))
    return Estimate(value := float(labels.mean()), value - radius, value + radius)
