"""Judges a set of answers into a results folder, and makes its report."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fromscratch.judging.asking import AskSettings, Interview, Progress
from fromscratch.judging.budget import Budget
from fromscratch.judging.endpoint import JudgeModel
from fromscratch.judging.folder import ResultsFolder, open_folder
from fromscratch.judging.labels import read_labels
from fromscratch.judging.modes import Mode, RequestSettings
from fromscratch.judging.report import Report, make_report
from fromscratch.judging.responses import AnswerSet
from fromscratch.judging.writing import annotate, write_report


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
    margin: float = 5.0,
    notice: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    """Asks what the folder has no judgement of, and writes the report of all.

    Args:
        budget: its tokens become those of the whole folder.
        losses: test losses by model.
        margin: the smallest difference of interest, in points of 100.

    Raises:
        UsageError: the number of models does not suit the mode, or the folder is of another judge.
    """
    tasks = options.mode.tasks(answers, repeats=options.repeats, seed=options.seed)
    identity = {
        "endpoint": options.judge.url,
        "model": options.judge.model,
        "mode": options.mode.name,
        **asdict(options.requests),
        "prompt": options.mode.prompt_hash(),
    }
    with open_folder(options.out, identity) as folder:
        folder.begin({"models": answers.models, "repeats": options.repeats, "seed": options.seed}, answers)
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


def update_report(folder: ResultsFolder, *, losses: Mapping[str, float] | None = None, margin: float = 5.0) -> Report:
    """Makes and writes the report and the annotated answers of what the folder's last command judged.

    Raises:
        UsageError: the folder holds a ``report.png`` of something else.
        DataError: its files are damaged.
    """
    answers = folder.answers()
    tasks = folder.tasks(answers)
    judgements = folder.judgements(tasks)
    labels = list(read_labels(folder.labels, answers))
    report = make_report(
        answers, folder.mode, tasks, judgements, folder.tried(), labels=labels, losses=losses, margin=margin
    )
    folder.write_annotated(answers, annotate(answers, tasks, judgements, is_paired=folder.mode.is_paired))
    write_report(folder, report)
    return report
