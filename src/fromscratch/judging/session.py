"""Judges a set of answers into a results folder, and makes its report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fromscratch.judging.asking import AskSettings, Interview, Progress
from fromscratch.judging.budget import Budget
from fromscratch.judging.endpoint import JudgeModel
from fromscratch.judging.folder import SCOPE, ResultsFolder, open_folder
from fromscratch.judging.labels import read_labels
from fromscratch.judging.modes import Mode, RequestSettings
from fromscratch.judging.report import Report, make_report
from fromscratch.judging.responses import AnswerSet
from fromscratch.judging.writing import annotate, write_report

DEFAULT_MARGIN = 5.0


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges what, and how."""

    judge: JudgeModel
    mode: Mode
    requests: RequestSettings
    settings: AskSettings
    out: Path
    repeats: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    progress: Progress
    stopped: Exception | None
    """What ended it early."""
    report: Report | None
    """None: nothing is judged yet."""


def judge_answers(
    answers: AnswerSet,
    options: JudgeOptions,
    budget: Budget,
    *,
    losses: Mapping[str, float] | None = None,
    margin: float | None = None,
    notice: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    """Asks what the folder has no judgement of, and writes the report of all.

    Args:
        budget: its tokens become those of the whole folder.
        losses: see ``update_report``.
        margin: see ``update_report``.

    Raises:
        UsageError: the number of models does not suit the mode, or the folder is of another judge.
    """
    tasks = options.mode.tasks(answers, repeats=options.repeats, seed=options.seed)
    identity = {
        "endpoint": options.judge.url,
        "model": options.judge.model,
        "mode": options.mode.name,
        "temperature": options.requests.temperature,
        "prompt": options.mode.prompt_hash(),
    }
    with open_folder(options.out, identity) as folder:
        scope = {"models": answers.models, "repeats": options.repeats, "seed": options.seed}
        folder.begin({**scope, "max_tokens": options.requests.max_tokens}, answers)
        budget.input_tokens, budget.output_tokens = folder.tokens()
        interview = Interview(
            options.judge,
            options.mode,
            options.requests,
            options.settings,
            folder,
            budget,
            notice=notice,
            on_progress=on_progress,
        )
        progress, stopped = interview.run(tasks)
        report = update_report(folder, losses=losses, margin=margin) if progress.judged else None
    return Outcome(progress, stopped, report)


def update_report(
    folder: ResultsFolder, *, losses: Mapping[str, float] | None = None, margin: float | None = None
) -> Report:
    """Makes and writes the report and the annotated answers of what the folder's last command judged.

    Args:
        losses: test losses by model; None: those of the last report, if it had any.
        margin: the smallest difference of interest, in points of 100; None: that of the last report, at first 5.

    Raises:
        UsageError: the folder holds a ``report.png`` of something else.
        DataError: its files are damaged.
    """
    answers = folder.answers()
    tasks = folder.tasks(answers)
    judgements = folder.judgements(tasks)
    labels = list(read_labels(folder.labels, answers))
    given = {"losses": losses, "margin": margin}
    folder.record_scope({name: value for name, value in given.items() if value is not None})
    scope = folder.description[SCOPE]
    report = make_report(
        answers,
        folder.mode,
        tasks,
        judgements,
        folder.tried(),
        labels=labels,
        losses=scope.get("losses"),
        margin=scope.get("margin", DEFAULT_MARGIN),
    )
    folder.write_annotated(answers, annotate(answers, tasks, judgements, is_paired=folder.mode.is_paired))
    write_report(folder, report)
    return report
