"""The report as Markdown and as a picture, and what the judge said as notes to the answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fromscratch.files import to_strict_json, write_atomically
from fromscratch.judging.folder import ResultsFolder
from fromscratch.judging.modes import Judgement, Task
from fromscratch.judging.observations import Observations
from fromscratch.judging.report import Report, win_rate
from fromscratch.judging.responses import AnswerSet
from fromscratch.judging.statistics import BETTER, MIN_LABELS, WORSE, Agreement, Estimate
from fromscratch.runs.charts import ACCENT, DOTS_PER_INCH, INK, check_picture, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_INSTRUCTION_CHARACTERS = 100
PAIRS = "pairs"


def write_report(folder: ResultsFolder, report: Report) -> None:
    """Writes ``report.json``, ``report.md`` and ``report.png``. Raises UsageError for a strange ``report.png``."""
    picture = check_picture(folder.path / "report.png", option="the folder's")
    write_atomically(folder.path / "report.json", to_strict_json(asdict(report), indent=1))
    write_atomically(folder.path / "report.md", to_markdown(report, folder.description["judge"]))
    draw_report(report, picture, judge=str(folder.description["judge"].get("model")))


def to_markdown(report: Report, judge: Mapping[str, Any]) -> str:
    """Returns the report as Markdown."""
    return "\n\n".join(_blocks(report, judge)) + "\n"


def _blocks(report: Report, judge: Mapping[str, Any]) -> Iterator[str]:
    yield "# What the judge says"
    yield (
        f"Judge: {_escaped(str(judge.get('model')))} at {judge.get('endpoint')}, mode {report.mode}, prompt "
        f"{judge.get('prompt')}. {report.questions} questions, {report.judged} of {report.requests} requests judged, "
        f"{report.failed} failed."
    )
    if report.notes:
        yield _list(report.notes)
    is_paired = report.mode == PAIRS
    yield _table(*model_table(report))
    if report.differences:
        yield f"## Differences\n\nIntervals hold together with 95%. The margin is {report.margin:g} points."
        yield _table(
            ["", "difference, points", "verdict", "at equal place and length", "verdict"],
            [
                [
                    f"{d.model} - {d.other}",
                    shown(d.mean, sign=True),
                    said(d.model, d.verdict),
                    strength_of(d.strength, is_paired=is_paired),
                    said(d.model, d.corrected_verdict),
                ]
                for d in report.differences
            ],
        )
    yield "## The judge\n\n" + _list(map(_escaped, about_judge(report, is_paired=is_paired)))
    yield from _labels_and_questions(report)


def model_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the heads of the columns, and a row for each model."""
    unit = "comparisons won, %" if report.mode == PAIRS else "mean score"
    has_losses = any(model.loss is not None for model in report.models)
    heads = ["model", unit, "at equal place and length", "questions", "failed", *(["test loss"] if has_losses else [])]
    return heads, [
        [m.model, shown(m.mean), shown(m.strength, 2, sign=True), str(m.questions), str(m.failed)]
        + ([f"{m.loss:.4f}" if m.loss is not None else "unknown"] if has_losses else [])
        for m in report.models
    ]


def _labels_and_questions(report: Report) -> Iterator[str]:
    if report.corrected:
        yield (
            "## With a person's labels\n\nShare of questions on which the first model's answer is better, in percent. "
            f"An interval takes {MIN_LABELS} labels of two models, and for the judge questions without a label."
        )
        yield _table(
            ["", "labels", "judge", "person alone", "judge, corrected"],
            [
                [
                    f"{c.model} against {c.other}",
                    c.labels,
                    f"{100 * c.judge:.1f}",
                    percent(c.person),
                    percent(c.corrected),
                ]
                for c in report.corrected
            ],
        )
    if report.separating:
        yield "## The questions that separate the models most"
        models = [model.model for model in report.models]
        yield _table(
            ["record", "instruction", *models],
            [
                [
                    q.question,
                    q.instruction[:MAX_INSTRUCTION_CHARACTERS],
                    *(f"{q.scores[model]:.1f}" for model in models),
                ]
                for q in report.separating
            ],
        )


def about_judge(report: Report, *, is_paired: bool) -> Iterator[str]:
    """Yields what is known of the judge itself, as sentences: place, length, agreement, failures."""
    unit = "log-odds" if is_paired else "points"
    yield f"First place over last: {shown(report.bias.place, 2, sign=True)} {unit}."
    yield f"Per doubling of an answer's length: {shown(report.bias.length, 2, sign=True)} {unit}."
    if report.bias.flipped is not None:
        yield f"Swapping the two answers changes the choice in {report.bias.flipped:.0%} of decisive comparisons."
    between = "both orders" if is_paired else "repeats"
    yield f"Agreement between {between}: {agreement(report.agreement)}."
    if report.person_agreement.comparisons:
        yield f"Agreement with the person: {agreement(report.person_agreement)}."
    if report.probability is not None:
        yield f"The next token is A or B with probability {report.probability:.2f}."
    correlation, p_value = report.loss_correlation
    if correlation is not None:
        yield f"Rank correlation with test loss over the models: {correlation:+.2f} (p = {p_value:.2g})."
    for reason, number in report.reasons.items():
        yield f"Failed {'once' if number == 1 else f'{number} times'}: {reason}."


def agreement(found: Agreement) -> str:
    """Says how often raters agree."""
    if found.raw is None:
        return "unknown, it takes two models that are judged twice"
    kappa = "unknown" if found.kappa is None else f"{found.kappa:.2f}"
    return f"{found.raw:.0%} of {found.comparisons}, kappa {kappa}"


def shown(estimate: Estimate, digits: int = 1, *, sign: bool = False) -> str:
    """Formats an estimate with its interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    if estimate.value is None:
        return "unknown"
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, form)
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def said(model: str, verdict: str) -> str:
    """Returns a verdict as a sentence about the first of two models."""
    return f"{model} is {verdict}" if verdict in {BETTER, WORSE} else verdict


def strength_of(estimate: Estimate, *, is_paired: bool) -> str:
    """Formats a difference of strengths; that of pairs with the share of wins that it stands for."""
    text = shown(estimate, 2, sign=True)
    return f"{text}, wins {win_rate(estimate.value):.0f}%" if is_paired and estimate.value is not None else text


def percent(estimate: Estimate) -> str:
    """Formats a share in percent."""
    return shown(Estimate(*(None if v is None else 100 * v for v in (estimate.value, estimate.low, estimate.high))))


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_escaped(str(cell)) for cell in line) + " |" for line in lines)


def _list(items: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _escaped(text: str) -> str:
    """Makes text of strangers harmless in a table: one line, no mark-up of Markdown or HTML."""
    text = " ".join(text.split())
    for character in "\\`*_[]|":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def draw_report(report: Report, path: Path, *, judge: str) -> None:
    """Draws the models' means, and their strengths at equal place and length, with their intervals."""
    import matplotlib.figure

    height = 1.6 + 0.4 * len(report.models)
    figure = matplotlib.figure.Figure(figsize=(9.0, height), dpi=DOTS_PER_INCH, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [model.model for model in report.models]
    is_paired = report.mode == PAIRS
    left_label = "comparisons won, %" if is_paired else "mean score"
    right_label = f"at equal place and length, {'log-odds' if is_paired else 'points'}"
    _draw_estimates(left, [model.mean for model in report.models], left_label, INK)
    _draw_estimates(right, [model.strength for model in report.models], right_label, ACCENT)
    right.axvline(0, color="grey", linewidth=0.8)
    left.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    left.set_ylim(len(names) - 0.5, -0.5)
    title = f"judged by {judge}, {report.mode}: {report.questions} questions, 95% intervals over questions"
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize="medium")
    write_picture(path, figure)


def _draw_estimates(axes: "Axes", estimates: Sequence[Estimate], label: str, colour: str) -> None:
    for row, estimate in enumerate(estimates):
        if estimate.value is None:
            axes.annotate("unknown", (0.02, row), xycoords=("axes fraction", "data"), va="center", fontsize="small")
            continue
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2)
        axes.plot([estimate.value], [row], marker="o", color=colour)
    axes.set_xlabel(label)
    axes.grid(alpha=0.25, axis="x")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def annotate(
    answers: AnswerSet, tasks: Sequence[Task], judgements: Mapping[str, Judgement], *, is_paired: bool
) -> dict[str, list[dict[str, Any]]]:
    """Returns what the judge said of each answer, by model and question.

    ``score`` is the mean over repeats, for pairs the share of won comparisons in percent; null without a judgement.
    ``judged`` lists each judgement: its repeat and place with score and comment, or the other model and ``won``.
    """
    table = Observations.of(answers, tasks, judgements, is_paired=is_paired).by_question()
    said: dict[str, list[dict[str, Any]]] = {
        model: [{"score": None if np.isnan(value) else float(value), "judged": []} for value in table[:, number]]
        for number, model in enumerate(answers.models)
    }
    for task in tasks:
        if (judgement := judgements.get(task.key)) is None:
            continue
        for place, model in enumerate(task.models, 1):
            about: dict[str, Any] = {"repeat": task.repeat, "place": place}
            if is_paired:
                p = judgement["p_first"]
                about |= {"against": task.models[2 - place], "won": p if place == 1 else 1 - p}
            else:
                about |= {"score": judgement["scores"][model], "comment": judgement["comments"].get(model, "")}
            said[model][task.question]["judged"].append(about)
    return said
