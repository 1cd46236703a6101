"""What scores and choices depend on: the model, the place of its answer, and the length of its answer.

Scores: a linear model within questions. Choices: a logistic model of Bradley and Terry (1952) with the two covariates,
as in Chatbot Arena (Chiang et al. 2024, section 4) and length-controlled AlpacaEval (Dubois et al. 2024). Questions
are resampled, because judgements about one question depend on one another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from fromscratch.evaluation.bootstrap import bootstrap_counts
from fromscratch.judging.observations import Floats, Integers, Observations

RIDGE = 0.01
"""Keeps strengths finite where a model wins always. Ten decisive choices weigh about 250 times as much."""
MIN_OWN_VARIANCE = 0.005
"""Share of a covariate's variance that the others do not explain, below which its effect cannot be told from theirs."""
MAX_STEPS, MAX_STEP, TOLERANCE = 100, 2.0, 1e-6
MODEL, PLACE, LENGTH = "model", "place", "length"


@dataclass(frozen=True)
class Fit:
    """Estimates with resamples [R, ...]. Scores: in points. Choices: in log-odds."""

    strengths: Floats
    """By model, of mean 0: at equal place and equal length."""
    strength_samples: Floats
    place: float | None
    """Advantage of the first place over the last; None where it cannot be told."""
    place_samples: Floats
    length: float | None
    """Advantage per doubling of the length; None where it cannot be told."""
    length_samples: Floats


def fit_effects(observations: Observations) -> Fit | None:
    """Estimates all effects together; None for one model, and for no more judged questions than effects."""
    num_models = len(observations.models)
    judged = np.bincount(observations.question, minlength=observations.num_questions) > 0
    if num_models < 2 or not judged.any():
        return None
    columns = np.eye(num_models)[observations.first]
    if observations.is_paired:
        columns -= np.eye(num_models)[observations.second]
        place = np.ones(len(observations.values))
        names, x = _identified([(MODEL, columns), (PLACE, place), (LENGTH, observations.length)])
        solve = _logistic(observations.values, x, observations.question)
    else:
        group = observations.question * (int(observations.repeat.max()) + 1) + observations.repeat
        parts = [(MODEL, columns), (PLACE, observations.place), (LENGTH, observations.length)]
        names, x = _identified([(name, _within(part, group)) for name, part in parts])
        solve = _linear(_within(observations.values, group), x, observations.question, observations.num_questions)
    if judged.sum() <= len(names):
        return None
    counts = np.zeros((len(draws := bootstrap_counts(int(judged.sum()))), observations.num_questions))
    counts[:, judged] = draws
    estimate = solve(np.ones(observations.num_questions))
    samples = np.stack([solve(count) for count in counts])
    found = {name: (estimate[names.index(name)], samples[:, names.index(name)]) for name in names if name != MODEL}
    nothing = (None, np.full(len(samples), np.nan))
    place_effect, length_effect = (found.get(name, nothing) for name in (PLACE, LENGTH))
    return Fit(
        estimate[:num_models] - estimate[:num_models].mean(),
        samples[:, :num_models] - samples[:, :num_models].mean(axis=1, keepdims=True),
        *place_effect,
        *length_effect,
    )


def _within(values: Floats, group: Integers) -> Floats:
    """Subtracts the mean of each group from its rows."""
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, index, values)
    return values - (sums.T / counts).T[index]


def _identified(parts: list[tuple[str, Floats]]) -> tuple[list[str], Floats]:
    """Returns the names and columns that can be told apart, without covariates that others explain."""
    names, columns = [], np.empty((len(parts[0][1]), 0))
    for name, part in parts:
        block = part.reshape(len(part), -1)
        if name != MODEL:
            solution = np.linalg.lstsq(columns, block, rcond=None)[0]
            own = ((block - columns @ solution) ** 2).sum()
            if own <= MIN_OWN_VARIANCE * (block**2).sum():
                continue
        names += [name] * block.shape[1]
        columns = np.hstack([columns, block])
    return names, columns


Solve = Callable[[Floats], Floats]
"""From how often each question counts [Q] to coefficients [K]."""


def _linear(y: Floats, x: Floats, question: Integers, num_questions: int) -> Solve:
    squares = np.zeros((num_questions, x.shape[1], x.shape[1]))
    products = np.zeros((num_questions, x.shape[1]))
    np.add.at(squares, question, x[:, :, None] * x[:, None, :])
    np.add.at(products, question, x * y[:, None])

    def solve(counts: Floats) -> Floats:
        # the smallest of all solutions: strengths are known up to a constant
        return np.linalg.pinv(np.tensordot(counts, squares, 1), hermitian=True) @ (counts @ products)

    return solve


def _logistic(y: Floats, x: Floats, question: Integers) -> Solve:
    start = np.zeros(x.shape[1])

    def solve(counts: Floats) -> Floats:
        nonlocal start
        weights, coefficients = counts[question], start
        for step in _newton(y, x, weights, coefficients):
            coefficients = step
        if not start.any():
            start = coefficients  # resamples begin at the estimate
        return coefficients

    return solve


def _newton(y: Floats, x: Floats, weights: Floats, coefficients: Floats) -> Iterator[Floats]:
    """Yields the steps of Newton's method for the penalised likelihood; long ones are shortened."""
    for _ in range(MAX_STEPS):
        p = expit(x @ coefficients)
        gradient = x.T @ (weights * (y - p)) - RIDGE * coefficients
        curvature = (x * (weights * p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, MAX_STEP / max(np.abs(step).max(), TOLERANCE))
        coefficients = coefficients + step
        yield coefficients
        if np.abs(step).max() < TOLERANCE:
            return
