"""The report of a judge: who is better, how sure that is, and how far the judge can be trusted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import expit

from fromscratch.judging.fits import Fit, fit_effects
from fromscratch.judging.labels import TIE, Pair
from fromscratch.judging.modes import Judgement, Mode, Task
from fromscratch.judging.observations import Floats, Observations
from fromscratch.judging.responses import AnswerSet
from fromscratch.judging.statistics import (
    NO_EFFECT,
    NOTHING,
    Agreement,
    Estimate,
    agreement_of,
    agreement_of_raters,
    mean_of,
    mean_of_labels,
    paired_differences,
    percentile,
    prediction_powered_mean,
    rank_correlation,
    simultaneous,
    verdict_of,
)

MAX_QUESTIONS = 5
MIN_QUESTIONS = 20
MIN_PROBABILITY = 0.5
MIN_KAPPA = 0.2
"""Below, agreement is slight (Landis and Koch 1977)."""


@dataclass(frozen=True)
class ModelResult:
    """One model."""

    model: str
    mean: Estimate
    """Mean score, or share of won comparisons in percent, with its interval over questions."""
    strength: Estimate
    """At equal place and length, beside the mean of all models: in points, or for pairs in log-odds."""
    questions: int
    """Questions on which it was judged."""
    failed: int
    """Requests about it that failed."""
    loss: float | None = None


@dataclass(frozen=True)
class Difference:
    """A model minus another one. The intervals of all differences hold together."""

    model: str
    other: str
    mean: Estimate
    """In points, over the questions on which both were judged."""
    verdict: str
    """What it says about the first model."""
    strength: Estimate
    """The same at equal place and length: in points, or for pairs in log-odds."""
    corrected_verdict: str
    """``better`` and ``worse`` at equal place and length, or ``undecided``."""


@dataclass(frozen=True)
class Bias:
    """What else than the model moves the judge."""

    place: Estimate
    """Advantage of the first place over the last: in points, or for pairs in log-odds."""
    length: Estimate
    """Advantage per doubling of the length."""
    flipped: float | None
    """For pairs: share of comparisons in which the judge prefers the same place, not the same answer."""


@dataclass(frozen=True)
class Corrected:
    """Share of questions on which the first model's answer is better: by the judge, by a person, and by both."""

    model: str
    other: str
    labels: int
    judge: float
    person: Estimate
    corrected: Estimate
    """The judge's share, corrected for its errors on the labelled pairs (prediction-powered inference)."""


@dataclass(frozen=True)
class SeparatingQuestion:
    """A question on which the models differ most."""

    question: int
    instruction: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Report:
    """All of it. Shares of ``mean`` are in percent."""

    mode: str
    questions: int
    requests: int
    judged: int
    failed: int
    reasons: dict[str, int]
    """How often requests failed why."""
    models: list[ModelResult]
    differences: list[Difference]
    margin: float
    bias: Bias
    agreement: Agreement
    """Between repeats; for pairs, between the two orders."""
    probability: float | None
    """For pairs by log-probabilities: mean probability that the judge's next token is A or B at all."""
    person_agreement: Agreement
    """Between the judge and the person."""
    corrected: list[Corrected]
    loss_correlation: tuple[float | None, float | None]
    """Spearman's correlation of mean and test loss over the models, and its p-value."""
    separating: list[SeparatingQuestion]
    notes: list[str]


def make_report(
    answers: AnswerSet,
    mode: Mode,
    tasks: Sequence[Task],
    judgements: Mapping[str, Judgement],
    failures: Mapping[str, str],
    *,
    labels: Sequence[tuple[Pair, str]] = (),
    losses: Mapping[str, float] | None = None,
    margin: float = 5.0,
) -> Report:
    """Computes the report.

    Args:
        failures: reasons of the tasks that were asked and have no valid reply, by key.
        labels: what a person said.
        losses: test losses by model.
        margin: the smallest difference of interest, in points.
    """
    table = Observations.of(answers, tasks, judgements, is_paired=mode.is_paired)
    by_question = table.by_question()
    fit = fit_effects(table)
    failed = [task for task in tasks if task.key in failures and task.key not in judgements]
    models = _models(answers, by_question, fit, failed, losses or {})
    known = [model for model in models if model.loss is not None and model.mean.value is not None]
    probabilities = [j["probability"] for j in judgements.values() if isinstance(j.get("probability"), float)]
    probability = float(np.mean(probabilities)) if probabilities else None
    report = Report(
        mode=mode.name,
        questions=len(answers.questions),
        requests=len(tasks),
        judged=len(judgements),
        failed=len(failed),
        reasons=_counted([failures[task.key] for task in failed]),
        models=models,
        differences=_differences(answers.models, by_question, fit, margin),
        margin=margin,
        bias=_bias(table, fit),
        agreement=agreement_of_raters(table),
        probability=probability,
        person_agreement=_person_agreement(table, labels),
        corrected=_corrected(table, labels),
        loss_correlation=rank_correlation(
            np.array([model.mean.value for model in known], dtype=np.float64),
            np.array([model.loss for model in known], dtype=np.float64),
        ),
        separating=_separating(answers, by_question),
        notes=[],
    )
    report.notes.extend(_notes(report, table, fit))
    return report


def _models(
    answers: AnswerSet, by_question: Floats, fit: Fit | None, failed: list[Task], losses: Mapping[str, float]
) -> list[ModelResult]:
    return [
        ModelResult(
            model,
            mean_of(by_question[:, number]),
            percentile(fit.strengths[number], fit.strength_samples[:, number]) if fit else NOTHING,
            int(np.isfinite(by_question[:, number]).sum()),
            sum(model in task.models for task in failed),
            losses.get(model),
        )
        for number, model in enumerate(answers.models)
    ]


def _differences(models: list[str], by_question: Floats, fit: Fit | None, margin: float) -> list[Difference]:
    pairs = list(combinations(range(len(models)), 2))
    if not pairs:
        return []
    means = paired_differences(by_question, pairs)
    strengths = [NOTHING] * len(pairs)
    if fit:
        ones, others = np.array(pairs).T
        samples = fit.strength_samples[:, ones] - fit.strength_samples[:, others]
        strengths = simultaneous(fit.strengths[ones] - fit.strengths[others], samples)
    return [
        Difference(
            models[one], models[other], mean, verdict_of(mean, margin), strength, verdict_of(strength, -math.inf)
        )
        for (one, other), mean, strength in zip(pairs, means, strengths, strict=True)
    ]


def _bias(table: Observations, fit: Fit | None) -> Bias:
    flipped = None
    if table.is_paired:
        orders = [
            preferences[:, column : column + 2]
            for one, other in combinations(range(len(table.models)), 2)
            for preferences in [table.preferences(one, other)]
            for column in range(0, preferences.shape[1], 2)
        ]
        sides = np.sign(np.concatenate(orders) - 0.5)
        decisive = np.isfinite(sides).all(axis=1) & (sides != 0).all(axis=1)
        flipped = float((sides[decisive, 0] != sides[decisive, 1]).mean()) if decisive.any() else None
    if fit is None:
        return Bias(NOTHING, NOTHING, flipped)
    return Bias(percentile(fit.place, fit.place_samples), percentile(fit.length, fit.length_samples), flipped)


def _judge_and_person(table: Observations, labels: Sequence[tuple[Pair, str]], one: int, other: int) -> list[Floats]:
    """Returns the judge's preference per question [Q], and the person's: 1, 0 or 1/2; NaN without a label."""
    preferences = table.preferences(one, other)
    known = np.isfinite(preferences)
    sums, counts = np.where(known, preferences, 0).sum(axis=1), known.sum(axis=1)
    judge = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    person = np.full(len(judge), np.nan)
    for pair, label in labels:
        if {pair.first, pair.second} == {table.models[one], table.models[other]}:
            person[pair.question] = 0.5 if label == TIE else float(label == table.models[one])
    return [judge, person]


def _person_agreement(table: Observations, labels: Sequence[tuple[Pair, str]]) -> Agreement:
    both = [_judge_and_person(table, labels, *pair) for pair in combinations(range(len(table.models)), 2)]
    if not labels or not both:
        return Agreement(0, None, None)
    return agreement_of(np.concatenate([judge for judge, _ in both]), np.concatenate([person for _, person in both]))


def _corrected(table: Observations, labels: Sequence[tuple[Pair, str]]) -> list[Corrected]:
    found = []
    for one, other in combinations(range(len(table.models)), 2):
        judge, person = _judge_and_person(table, labels, one, other)
        judged, labelled = np.isfinite(judge), np.isfinite(person)
        both = judged & labelled
        if both.any():
            corrected = prediction_powered_mean(judge[judged & ~labelled], judge[both], person[both])
            share, alone = float(judge[judged].mean()), mean_of_labels(person[both])
            found.append(Corrected(table.models[one], table.models[other], int(both.sum()), share, alone, corrected))
    return found


def _separating(answers: AnswerSet, by_question: Floats) -> list[SeparatingQuestion]:
    complete = np.isfinite(by_question).all(axis=1)
    spread = np.where(complete, np.ptp(np.nan_to_num(by_question), axis=1), 0.0)
    order = [int(index) for index in np.argsort(-spread, kind="stable") if spread[index] > 0][:MAX_QUESTIONS]
    return [
        SeparatingQuestion(
            index,
            answers.questions[index].instruction,
            {model: float(by_question[index, number]) for number, model in enumerate(answers.models)},
        )
        for index in order
    ]


def _counted(reasons: list[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in sorted(set(reasons), key=lambda one: -reasons.count(one))}


def _notes(report: Report, table: Observations, fit: Fit | None) -> list[str]:
    """Returns what a reader must know before believing the figures."""
    notes = []
    if missing := report.requests - report.judged:
        notes.append(
            f"{missing} of {report.requests} requests have no judgement ({report.failed} failed); they count in no "
            "figure. If the judge fails where a model is bad, the model looks better than it is."
        )
    are_few = (judged := len(np.unique(table.question))) < MIN_QUESTIONS
    if judged and are_few:
        notes.append(f"{judged} questions are few: intervals by resampling are too narrow below about {MIN_QUESTIONS}.")
    if fit and fit.length is None and len(report.models) > 1:
        notes.append("Length cannot be told from the models here; the strengths are not corrected for it.")
    if len(table.values) > 1 and np.ptp(table.values) == 0:
        notes.append("All judgements are the same; the judge tells no answers apart.")
    kappa = report.agreement.kappa
    if kappa is not None and kappa < MIN_KAPPA and any(one.verdict == NO_EFFECT for one in report.differences):
        notes.append(
            f"The judge agrees with itself hardly more often than by chance (kappa {kappa:.2f}): that it sees no "
            "effect is no sign that there is none."
        )
    unit = "log-odds" if table.is_paired else "points"
    if report.bias.place.differs_from_zero and not are_few:
        place = "first" if (report.bias.place.value or 0) > 0 else "last"
        notes.append(f"The judge prefers the {place} place: {_shown(report.bias.place)} {unit} from first to last.")
    if report.bias.length.differs_from_zero and not are_few:
        kind = "longer" if (report.bias.length.value or 0) > 0 else "shorter"
        notes.append(
            f"The judge prefers {kind} answers: {_shown(report.bias.length)} {unit} per doubling. They may also be "
            "better; a person's labels tell."
        )
    if report.probability is not None and report.probability < MIN_PROBABILITY:
        notes.append(
            f"The judge's next token is A or B with probability {report.probability:.2f} only; it hardly understands "
            "the request. Use a larger judge, or one that is tuned on instructions."
        )
    return notes


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f})"


def win_rate(log_odds: float) -> float:
    """Returns the probability that belongs to a strength difference, in percent."""
    return 100 * float(expit(log_odds))
