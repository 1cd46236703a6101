"""The report against judges with planted habits, and its statistics against hand values and simulations."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from fromscratch.evaluation import bootstrap
from fromscratch.judging.fits import RIDGE, fit_effects
from fromscratch.judging.labels import TIE, Pair, draw_pairs
from fromscratch.judging.modes import MODES, Judgement, Task
from fromscratch.judging.observations import Observations
from fromscratch.judging.report import Report, make_report
from fromscratch.judging.responses import AnswerSet, Question
from fromscratch.judging.statistics import (
    Agreement,
    Estimate,
    agreement_of,
    mean_of_labels,
    paired_differences,
    percentile,
    prediction_powered_mean,
    rank_correlation,
    verdict_of,
)

Like = Callable[[str, int, int], float]
"""From a model, the log2 length of its answer and its place to how much a judge likes it."""


def answers_of(number: int, **mean_words: int) -> AnswerSet:
    """Answers of random length: each from a half to twice the mean number of words."""
    generator = np.random.default_rng(1)
    texts = {
        model: tuple("x" * max(1, round(5 * words * 2 ** generator.uniform(-1, 1))) for _ in range(number))
        for model, words in mean_words.items()
    }
    return AnswerSet(tuple(Question(f"q{i}", "", "r") for i in range(number)), texts)


def judge_all(
    mode: str, answers: AnswerSet, like: Like, *, repeats: int = 1, noise: float = 0.0
) -> tuple[list[Task], dict[str, Judgement]]:
    """Judges every task: scores with normal noise, or a choice drawn with the logistic probability."""
    generator = np.random.default_rng(2)
    tasks = MODES[mode].tasks(answers, repeats=repeats, seed=0)
    judgements: dict[str, Judgement] = {}
    for task in tasks:
        likes = [
            like(model, np.log2(1 + len(answers.answers[model][task.question])), place)
            for place, model in enumerate(task.models)
        ]
        if mode == "pairs":
            judgements[task.key] = {"p_first": float(generator.random() < expit(likes[0] - likes[1]))}
        else:
            scores = {m: one + generator.normal(0, noise) for m, one in zip(task.models, likes, strict=True)}
            judgements[task.key] = {"scores": scores, "comments": {}}
    return tasks, judgements


def report_of(mode: str, answers: AnswerSet, like: Like, *, keep: Callable[[Task], bool] = lambda _: True) -> Report:
    tasks, judgements = judge_all(mode, answers, like, noise=10.0)
    tasks = [task for task in tasks if keep(task)]
    return make_report(answers, MODES[mode], tasks, {task.key: judgements[task.key] for task in tasks}, {})


def holds(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low < truth < estimate.high


@pytest.mark.parametrize(("mode", "advantage"), [("pairs", 1.5), ("batch", 20.0)])
def test_a_planted_preference_for_the_first_place_is_told_and_undone(mode: str, advantage: float) -> None:
    answers = answers_of(200, a=20, b=20)
    # a is always shown first: its plain mean profits
    report = report_of(
        mode, answers, lambda _m, _l, place: 50 + advantage * (place == 0), keep=lambda t: t.models[0] == "a"
    )
    (difference,) = report.differences
    assert difference.verdict == "better"
    if mode == "batch":  # both orders are needed to tell the place from the model
        report = report_of(mode, answers, lambda _m, _l, place: 50 + advantage * (place == 0))
        (difference,) = report.differences
    else:
        both = report_of(mode, answers, lambda _m, _l, place: 50 + advantage * (place == 0))
        assert both.bias.flipped is not None and both.bias.flipped > 0.4
        report, (difference,) = both, both.differences
    assert holds(report.bias.place, advantage) and report.bias.place.differs_from_zero
    assert holds(difference.strength, 0) and difference.corrected_verdict == "undecided"
    assert any("prefers the first place" in note for note in report.notes)
    assert not any("longer" in note for note in report.notes)


@pytest.mark.parametrize(("mode", "per_doubling"), [("pairs", 0.8), ("batch", 8.0), ("individual", 8.0)])
def test_a_planted_preference_for_length_is_told_and_undone(mode: str, per_doubling: float) -> None:
    answers = answers_of(200, terse=10, wordy=40)
    report = report_of(mode, answers, lambda _model, length, _place: per_doubling * length)
    (difference,) = report.differences
    assert difference.verdict == "worse"  # terse loses, though both models are equally good
    assert holds(report.bias.length, per_doubling) and report.bias.length.differs_from_zero
    assert holds(difference.strength, 0) and difference.corrected_verdict == "undecided"
    assert any("prefers longer answers" in note for note in report.notes)


def test_intervals_of_place_and_strength_hold_at_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BOOTSTRAP_SAMPLES", 200)
    generator, looks, places, strengths = np.random.default_rng(6), 100, 0, 0
    for _ in range(looks):
        texts = {m: tuple("x" * int(generator.integers(20, 200)) for _ in range(40)) for m in "ab"}
        answers = AnswerSet(tuple(Question(f"q{i}", "", "") for i in range(40)), texts)
        tasks = MODES["batch"].tasks(answers, repeats=1, seed=int(generator.integers(10**6)))
        judgements: dict[str, Judgement] = {}
        for task in tasks:
            likes = {m: 50 + 6 * (m == "a") + 9 * (place == 0) for place, m in enumerate(task.models)}
            scores = {m: like + generator.normal(0, 10) for m, like in likes.items()}
            judgements[task.key] = {"scores": scores, "comments": {}}
        fit = fit_effects(Observations.of(answers, tasks, judgements, is_paired=False))
        assert fit is not None
        places += holds(percentile(fit.place, fit.place_samples), 9)
        strengths += holds(percentile(fit.strengths[0], fit.strength_samples[:, 0]), 3)
    assert 0.87 <= places / looks <= 0.99 and 0.87 <= strengths / looks <= 0.99


def test_a_real_difference_survives_both_corrections() -> None:
    answers = answers_of(200, good=10, bad=40, middle=20)
    quality = {"good": 1.2, "bad": 0.0, "middle": 0.6}
    report = report_of("pairs", answers, lambda model, length, place: quality[model] + 0.8 * length + (place == 0))
    for one in report.differences:
        assert holds(one.strength, quality[one.model] - quality[one.other])
    assert {(d.model, d.other): d.verdict for d in report.differences}["good", "bad"] == "worse"  # before correction
    assert {(d.model, d.other): d.corrected_verdict for d in report.differences}["good", "bad"] == "better"


def test_an_impartial_judge_is_not_accused() -> None:
    report = report_of("pairs", answers_of(200, a=20, b=20), lambda model, _l, _p: float(model == "a"))
    assert holds(report.bias.place, 0) and holds(report.bias.length, 0)
    assert report.differences[0].corrected_verdict == "better" and not report.notes


@pytest.mark.parametrize(("number", "is_accused"), [(4, False), (12, False), (40, True)])
def test_few_questions_accuse_no_judge(number: int, is_accused: bool) -> None:
    report = report_of("batch", answers_of(number, a=20, b=20, c=20), lambda _m, _l, place: 50 + 90.0 * (place == 0))
    assert any("prefers the first place" in note for note in report.notes) == is_accused
    assert report.bias.place.differs_from_zero == (number > 5)  # five effects fit five questions, whatever they are
    assert any("questions are few" in note for note in report.notes) == (not is_accused)


def test_length_that_is_the_same_for_all_corrects_nothing_and_is_told() -> None:
    questions = tuple(Question(f"q{i}", "", "") for i in range(30))
    answers = AnswerSet(questions, {"a": ("x" * 40,) * 30, "b": ("x" * 10,) * 30})
    report = report_of("pairs", answers, lambda _m, length, _p: length)
    assert report.bias.length == Estimate(None)
    assert any("Length cannot be told from the models" in note for note in report.notes)


def test_a_model_that_always_wins_has_a_finite_strength() -> None:
    report = report_of("pairs", answers_of(50, a=20, b=20), lambda model, _l, _p: 99.0 * (model == "a"))
    (difference,) = report.differences
    assert difference.corrected_verdict == "better" and 4 < (difference.strength.value or 0) < 30


def test_the_fit_of_choices_is_that_of_a_general_optimiser() -> None:
    answers = answers_of(40, a=10, b=20, c=40)
    tasks, judgements = judge_all("pairs", answers, lambda m, length, p: ord(m) * 0.5 + 0.3 * length + 0.4 * (p == 0))
    table = Observations.of(answers, tasks, judgements, is_paired=True)
    x = np.column_stack([np.eye(3)[table.first] - np.eye(3)[table.second], np.ones(len(tasks)), table.length])

    def penalised(beta: Any) -> float:
        z = x @ beta
        return float((np.logaddexp(0, z) - table.values * z).sum() + RIDGE / 2 * (beta**2).sum())

    reference = minimize(penalised, np.zeros(5), method="BFGS", tol=1e-10).x
    fit = fit_effects(table)
    assert fit is not None
    np.testing.assert_allclose(fit.strengths, reference[:3] - reference[:3].mean(), atol=1e-4)
    assert (fit.place, fit.length) == pytest.approx(tuple(reference[3:]), abs=1e-4)


def test_the_fit_of_scores_is_the_difference_of_means_where_nothing_else_varies() -> None:
    answers = AnswerSet(tuple(Question(f"q{i}", "", "") for i in range(3)), {"a": ("x",) * 3, "b": ("x",) * 3})
    tasks = MODES["individual"].tasks(answers, repeats=1, seed=0)
    given = iter([10, 20, 30, 60, 50, 70])
    judgements = {task.key: {"scores": {task.models[0]: float(next(given))}, "comments": {}} for task in tasks}
    report = make_report(answers, MODES["individual"], tasks, judgements, {})
    assert [m.mean.value for m in report.models] == [30.0, 50.0]
    assert report.differences[0].strength.value == pytest.approx(-20.0)
    assert [q.question for q in report.separating] == [1, 2, 0]
    assert report.separating[0].scores == {"a": 30.0, "b": 60.0}


def test_a_question_that_failed_counts_for_nobody() -> None:
    answers = answers_of(30, a=20, b=20)
    tasks, judgements = judge_all("batch", answers, lambda model, _l, _p: 80.0 if model == "a" else 60.0)
    failures = {task.key: "no reply" for task in tasks[:3]}
    for key in failures:
        del judgements[key]
    report = make_report(answers, MODES["batch"], tasks, judgements, failures)
    assert (report.failed, report.judged, report.reasons) == (3, 27, {"no reply": 3})
    assert [(m.mean.value, m.questions, m.failed) for m in report.models] == [(80.0, 27, 3), (60.0, 27, 3)]
    assert "3 of 30 requests have no judgement (3 failed)" in report.notes[0]


def test_agreement_is_cohens_kappa() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: Cohen's own kind of table, kappa 0.4
    one = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    other = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    found = agreement_of(one, other)
    assert (found.comparisons, found.raw) == (50, 0.7) and found.kappa == pytest.approx(0.4)
    assert agreement_of(np.ones(3), np.ones(3)) == Agreement(3, 1.0, None)
    assert agreement_of(np.array([np.nan, 0.9]), np.array([1.0, 0.6])) == Agreement(1, 1.0, None)


def test_a_judge_that_chooses_by_place_agrees_with_itself_no_better_than_chance() -> None:
    report = report_of("pairs", answers_of(100, a=20, b=20), lambda _m, _l, place: 9.0 * (place == 0))
    assert report.bias.flipped == pytest.approx(1.0, abs=0.02)
    assert report.agreement.raw is not None and report.agreement.raw < 0.02


def test_no_effect_of_a_judge_that_tells_nothing_apart_is_no_finding() -> None:
    answers = answers_of(40, a=20, b=20)
    first = report_of("pairs", answers, lambda _m, _l, place: 99.0 * (place == 0))  # always the letter A
    assert first.differences[0].verdict == "no effect larger than the margin"
    assert any("hardly more often than by chance (kappa 0.00)" in note for note in first.notes)
    assert any("All judgements are the same" in note for note in first.notes)
    decisive = report_of("pairs", answers, lambda model, _l, _p: 3.0 * (model == "a"))
    assert decisive.differences[0].verdict == "better" and not decisive.notes


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((3.0, 1.0, 5.0), "better"),
        ((-3.0, -5.0, -1.0), "worse"),
        ((0.0, -4.0, 4.0), "no effect larger than the margin"),
        ((0.0, -6.0, 4.0), "undecided"),
        ((0.0, 0.0, 0.0), "no effect larger than the margin"),
        ((1.0, None, None), "unknown"),
        ((None, None, None), "unknown"),
    ],
)
def test_verdicts(interval: tuple[float | None, float | None, float | None], verdict: str) -> None:
    assert verdict_of(Estimate(*interval), 5.0) == verdict


def test_the_intervals_of_all_differences_hold_together() -> None:
    generator, misses, looks = np.random.default_rng(3), 0, 200
    for _ in range(looks):
        values = generator.normal(size=(60, 1)) + generator.normal(size=(60, 4))  # four equal models
        found = paired_differences(values, list(itertools.combinations(range(4), 2)))
        misses += any(difference.differs_from_zero for difference in found)
    assert 0.01 < misses / looks < 0.10


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(np.array([50.0, 60, 70, 80]), np.array([3.3, 3.2, 3.1, 3.0])) == pytest.approx((-1, 2 / 24))
    assert rank_correlation(np.array([50.0, 60.0]), np.array([3.3, 3.2])) == (None, None)
    assert rank_correlation(np.array([50.0, 50.0, 50.0]), np.array([3.3, 3.2, 3.1])) == (None, None)


def test_prediction_powered_intervals_hold_for_a_wrong_judge_and_are_narrower() -> None:
    """Planted truth: a person prefers the first model with 60%. The judge errs, more often in favour of the first."""
    generator, truth, looks = np.random.default_rng(4), 0.6, 1000
    hits, judge_hits, widths, widths_alone = 0, 0, [], []
    for _ in range(looks):
        person = (generator.random(400) < truth).astype(float)
        judge = np.where(generator.random(400) < np.where(person == 1, 0.02, 0.25), 1 - person, person)
        corrected = prediction_powered_mean(judge[50:], judge[:50], person[:50])
        alone = mean_of_labels(person[:50])
        assert corrected.low is not None and corrected.high is not None and alone.low is not None and alone.high
        hits += holds(corrected, truth)
        judge_hits += abs(judge.mean() - truth) < 1.96 * judge.std() / 20
        widths.append(corrected.high - corrected.low)
        widths_alone.append(alone.high - alone.low)
    assert 0.93 < hits / looks < 0.97
    assert judge_hits / looks < 0.1  # the judge alone is wrong, and sure of it
    assert np.mean(widths) < 0.8 * np.mean(widths_alone)


def test_labels_correct_the_report() -> None:
    answers = answers_of(300, a=20, b=20)
    generator = np.random.default_rng(5)
    prefers_a = generator.random(300) < 0.5
    judge = np.where(generator.random(300) < 0.02, ~prefers_a, prefers_a) | (generator.random(300) < 0.2)
    tasks = MODES["pairs"].tasks(answers, repeats=1, seed=0)
    judgements: Mapping[str, Judgement] = {
        task.key: {"p_first": float(judge[task.question] == (task.models[0] == "a"))} for task in tasks
    }
    labels = [(pair, "a" if prefers_a[pair.question] else "b") for pair in draw_pairs(answers, 50, 0)]
    report = make_report(answers, MODES["pairs"], tasks, judgements, {}, labels=labels)
    (corrected,) = report.corrected
    assert corrected.labels == 50 and corrected.judge > float(prefers_a.mean()) + 0.05
    assert holds(corrected.corrected, float(prefers_a.mean()))
    assert (
        (corrected.corrected.high or 1) - (corrected.corrected.low or 0)
        < 0.25
        < (corrected.person.high or 1) - (corrected.person.low or 0)
    )
    assert report.person_agreement.comparisons == 50


def test_labels_of_ties_and_few_labels() -> None:
    answers = answers_of(30, a=20, b=20)
    tasks, judgements = judge_all("batch", answers, lambda _m, _l, _p: 50.0)
    labels = [(Pair(number, "b", "a"), TIE) for number in range(5)]
    report = make_report(answers, MODES["batch"], tasks, judgements, {}, labels=labels)
    (corrected,) = report.corrected
    assert (corrected.judge, corrected.person, corrected.corrected) == (0.5, Estimate(0.5), Estimate(None))
