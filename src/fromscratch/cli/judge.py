"""``fromscratch judge``: a language model scores or compares the answers of others."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fromscratch.cli.options import JsonFlag, QuietFlag
from fromscratch.cli.output import note, print_columns, print_json
from fromscratch.errors import FromScratchError, UsageError

if TYPE_CHECKING:
    from fromscratch.judging.asking import Progress
    from fromscratch.judging.budget import Budget
    from fromscratch.judging.report import Report
    from fromscratch.judging.session import Outcome

DEFAULT_COMMAND = "run"
PROGRESS_LINES = 20


class _JudgeGroup(TyperGroup):
    """``judge FILE...`` means ``judge run FILE...``."""

    default_command = DEFAULT_COMMAND

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_JudgeGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Let a language model judge the answers of others: 'judge FILE...' is 'judge run FILE...'.",
)

LossesOption = Annotated[
    Path | None,
    typer.Option(help='Test losses by model: a JSON file {"MODEL": loss}, or a folder of runs of these names.'),
]
MarginOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="The smallest difference of interest, in points; at first 5. Later reports keep it."),
]
ResponsesArgument = Annotated[
    list[str],
    typer.Argument(metavar="[NAME=]FILE...", help="Answers, as 'fromscratch respond' writes them, one file a model."),
]
JudgeOption = Annotated[
    str, typer.Option(metavar="openai:MODEL|URL#MODEL", help="Any endpoint with OpenAI's protocol for chats.")
]
AnswerKeyOption = Annotated[
    list[str] | None,
    typer.Option(help="The key of the answer in a record, by default model_response; several are several models."),
]
KeyVariableOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Environment variable with the key; by default OPENAI_API_KEY, for openai:MODEL only."
    ),
]
PriceIn = Annotated[float | None, typer.Option(min=0.0, help="Dollars per million input tokens.")]
PriceOut = Annotated[float | None, typer.Option(min=0.0, help="Dollars per million output tokens.")]
Cap = Annotated[
    float | None, typer.Option(min=0.0, help="Cap on what the whole results folder may cost; needs both prices.")
]
Attempts = Annotated[int, typer.Option(min=1, help="Requests for one judgement before it counts as failed.")]


@app.command()
def run(
    responses: ResponsesArgument,
    judge: JudgeOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The results folder of this judge.")] = Path("judged"),
    mode: Annotated[str, typer.Option(help="batch, pairs or individual.")] = "batch",
    answer_key: AnswerKeyOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each question is judged, in other orders.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first questions only.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the order of the answers.")] = 0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the judge.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply, thoughts included.")] = 2048,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    attempts: Attempts = 4,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one reply.")] = 120.0,
    key_variable: KeyVariableOption = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_dollars: Cap = None,
    losses: LossesOption = None,
    margin: MarginOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Judge the answers of several models to the same questions; what was judged before is not asked again.

    Example: fromscratch judge base.json tuned.json --judge http://localhost:11434/v1#llama3.1:8b --out judged
    """
    from fromscratch.finetuning.records import RESPONSE
    from fromscratch.judging.asking import AskSettings
    from fromscratch.judging.budget import Budget
    from fromscratch.judging.endpoint import find_judge
    from fromscratch.judging.modes import RequestSettings, find_mode
    from fromscratch.judging.responses import load_answers
    from fromscratch.judging.scores import read_losses
    from fromscratch.judging.session import JudgeOptions, judge_answers

    requests, settings = RequestSettings(temperature, max_tokens), AskSettings(concurrency, attempts, timeout)
    options = JudgeOptions(find_judge(judge, key_variable), find_mode(mode), requests, settings, out, repeats, seed)
    budget = Budget(price_in, price_out, max_dollars)
    answers = load_answers(responses, answer_key or [RESPONSE]).first(limit)
    by_model = read_losses(losses, answers.models) if losses else None
    if nameless := sum(not question.reference for question in answers.questions):
        note(f"notice: {nameless:,} of {len(answers.questions):,} questions have no reference answer")
    printer = _Printer(budget, quiet=quiet)
    told = judge_answers(
        answers, options, budget, losses=by_model, margin=margin, notice=note, on_progress=printer.print_progress
    )
    printer.print_end(told.progress)
    _end(told, out, as_json=as_json)


def _end(told: "Outcome", out: Path, *, as_json: bool) -> None:
    """Prints the report, and how the command ended. Raises what ended it early."""
    if told.report is not None:
        _print(told.report, out, as_json=as_json)
    if told.stopped is not None:
        raise told.stopped
    if told.report is None:
        reason = next(iter(told.progress.reasons.values()))
        raise FromScratchError(f"nothing was judged: {reason}; {out / 'replies.jsonl'} holds all replies")
    if told.progress.failed:
        note(f"notice: {told.progress.failed:,} requests failed; the same command asks them again")


class _Printer:
    """Prints how far a command is, about twenty times, and what it cost."""

    def __init__(self, budget: "Budget", *, quiet: bool) -> None:
        self._budget, self._quiet, self._printed = budget, quiet, 0

    def print_progress(self, progress: "Progress") -> None:
        every = max(1, progress.total // PROGRESS_LINES)
        done = progress.judged + progress.failed
        if done < progress.total and (number := done // every) > self._printed:
            self._printed = number
            dollars = self._budget.dollars()
            note(_counts(progress) + ("" if dollars is None else f", {dollars:.4f} dollars"), quiet=self._quiet)

    def print_end(self, progress: "Progress") -> None:
        dollars = self._budget.dollars()
        cost = "unknown, give --price-in and --price-out" if dollars is None else f"{dollars:.4f} dollars"
        tokens = f"{self._budget.input_tokens:,} input and {self._budget.output_tokens:,} output tokens in this folder"
        note(f"{_counts(progress)}; {tokens}, cost {cost}", quiet=self._quiet)


def _counts(progress: "Progress") -> str:
    return f"{progress.judged:,} of {progress.total:,} judged, {progress.failed:,} failed"


@app.command()
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="DIR|FILE...", help="A results folder, or JSON lists of scores of another judge."),
    ],
    losses: LossesOption = None,
    margin: MarginOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the report of a results folder again, such as after 'judge label'; or report lists of scores.

    Example: fromscratch judge report judged --losses runs
    """
    from fromscratch.judging.folder import ResultsFolder
    from fromscratch.judging.scores import read_losses, report_scores
    from fromscratch.judging.session import DEFAULT_MARGIN, update_report
    from fromscratch.judging.writing import said, shown

    if sources[0].is_dir():
        if len(sources) > 1:
            raise UsageError(f"judge report {sources[0]}: one results folder at a time; judges are never mixed")
        folder = ResultsFolder(sources[0])
        models = folder.answers().models
        made = update_report(folder, losses=read_losses(losses, models) if losses else None, margin=margin)
        _print(made, folder.path, as_json=as_json)
        return
    if losses:
        raise UsageError("--losses: is for a results folder, not for lists of scores")
    lists, differences = report_scores(sources, margin=DEFAULT_MARGIN if margin is None else margin)
    if as_json:
        print_json({"scores": [asdict(one) for one in lists], "differences": [asdict(one) for one in differences]})
        return
    print_columns(
        ["scores", "mean", "questions", "missing"],
        [[one.name, shown(one.mean, 2), str(one.scores), str(one.missing)] for one in lists],
    )
    for one in differences:
        print(f"{one.name} - {one.other}: {shown(one.mean, 2, sign=True)}: {said(one.name, one.verdict)}")


@app.command()
def label(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder.")],
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs of answers to label.")] = 50,
    seed: Annotated[int, typer.Option(help="Draws the pairs.")] = 0,
) -> None:
    """Say yourself which of two answers is better, without knowing whose they are. Resumes where you stopped.

    Example: fromscratch judge label judged
    """
    from fromscratch.cli.labels import Asker
    from fromscratch.judging.folder import ResultsFolder
    from fromscratch.judging.labels import ask_labels, draw_pairs
    from fromscratch.judging.statistics import MIN_LABELS

    opened = ResultsFolder(folder)
    answers = opened.answers()
    drawn = draw_pairs(answers, pairs, seed)
    if not drawn:
        raise UsageError(f"{folder}: has one model only; labels compare the answers of two")
    if len(drawn) < pairs:
        note(f"notice: there are {len(drawn):,} pairs")
    if len(drawn) < (needed := MIN_LABELS * math.comb(len(answers.models), 2)):
        note(f"notice: {len(answers.models)} models take {needed} pairs, {MIN_LABELS} of each two, for their intervals")
    labelled, new = ask_labels(opened.labels, answers, drawn, Asker(answers, len(drawn)))
    print(f"{labelled} of {len(drawn)} pairs labelled, {new} now")
    if new:
        note(f"fromscratch judge report {folder} uses them")


def _print(report: "Report", folder: Path, *, as_json: bool) -> None:
    from fromscratch.judging.writing import PAIRS, agreement, model_table, percent, said, shown, strength_of

    if as_json:
        print_json(asdict(report))
        return
    print_columns(*model_table(report))
    for d in report.differences:
        print(f"{d.model} - {d.other}: {shown(d.mean, sign=True)} points: {said(d.model, d.verdict)}")
        corrected = strength_of(d.strength, is_paired=report.mode == PAIRS)
        print(f"  at equal place and length: {corrected}: {said(d.model, d.corrected_verdict)}")
    for c in report.corrected:
        share = f"{c.model} better than {c.other}, % of questions"
        print(f"{share}, corrected with {c.labels} labels: {percent(c.corrected)}")
    print(f"agreement of the judge with itself: {agreement(report.agreement)}")
    for text in report.notes:
        note(f"notice: {text}")
    print(f"report: {folder / 'report.md'}")
