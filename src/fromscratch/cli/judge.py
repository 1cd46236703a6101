"""``fromscratch judge``: a language model scores or compares the answers of others."""

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
    from fromscratch.judging.folder import ResultsFolder
    from fromscratch.judging.report import Report

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
MarginOption = Annotated[float, typer.Option(min=0.0, help="The smallest difference of interest, in points of 100.")]


@app.callback()
def common() -> None:
    """Let a language model judge the answers of others: 'judge FILE...' is 'judge run FILE...'."""


@app.command()
def run(
    responses: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]FILE...", help="Answers, as 'fromscratch respond' writes them, one file a model."
        ),
    ],
    judge: Annotated[
        str,
        typer.Option(metavar="openai:MODEL|URL#MODEL", help="Any endpoint with OpenAI's protocol for chats."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The results folder of this judge.")] = Path("judged"),
    mode: Annotated[str, typer.Option(help="batch, pairs or individual.")] = "batch",
    answer_key: Annotated[
        list[str] | None,
        typer.Option(help="The key of the answer in a record, by default model_response; several are several models."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each question is judged, in other orders.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first questions only.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the order of the answers.")] = 0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the judge.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply, thoughts included.")] = 2048,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    attempts: Annotated[int, typer.Option(min=1, help="Requests for one judgement before it counts as failed.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one reply.")] = 120.0,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the key; by default OPENAI_API_KEY, for openai:MODEL only."
        ),
    ] = None,
    price_in: Annotated[float | None, typer.Option(min=0.0, help="Dollars per million input tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0.0, help="Dollars per million output tokens.")] = None,
    max_dollars: Annotated[
        float | None, typer.Option(min=0.0, help="Cap on what the whole results folder may cost; needs both prices.")
    ] = None,
    losses: LossesOption = None,
    margin: MarginOption = 5.0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Judge the answers of several models to the same questions; what was judged before is not asked again.

    Example: fromscratch judge base.json tuned.json --judge http://localhost:11434/v1#llama3.1:8b --out judged
    """
    from fromscratch.finetuning.records import RESPONSE
    from fromscratch.judging.asking import AskSettings, Interview
    from fromscratch.judging.budget import Budget
    from fromscratch.judging.endpoint import find_judge
    from fromscratch.judging.folder import open_folder
    from fromscratch.judging.modes import RequestSettings, find_mode
    from fromscratch.judging.responses import load_answers
    from fromscratch.judging.scores import read_losses

    chosen, found = find_mode(mode), find_judge(judge, key_variable)
    answers = load_answers(responses, answer_key or [RESPONSE]).first(limit)
    requests = RequestSettings(temperature, max_tokens)
    tasks = chosen.tasks(answers, repeats=repeats, seed=seed)
    by_model = read_losses(losses, answers.models) if losses else None
    budget = Budget(price_in, price_out, max_dollars)
    if nameless := sum(not question.reference for question in answers.questions):
        note(f"notice: {nameless:,} of {len(answers.questions):,} questions have no reference answer")
    identity = {
        "endpoint": found.url,
        "model": found.model,
        "mode": mode,
        **asdict(requests),
        "prompt": chosen.prompt_hash(),
    }
    with open_folder(out, identity) as folder:
        folder.begin({"models": answers.models, "repeats": repeats, "seed": seed}, answers)
        budget.input_tokens, budget.output_tokens = folder.tokens()
        interview = Interview(
            found,
            chosen,
            requests,
            AskSettings(concurrency, attempts, timeout),
            folder,
            budget,
            notice=note,
            on_progress=_Printer(len(tasks), quiet=quiet),
        )
        progress, stopped = interview.run(tasks)
        dollars = budget.dollars()
        cost = "unknown, give --price-in and --price-out" if dollars is None else f"{dollars:.4f} dollars"
        note(
            f"{progress.judged:,} of {progress.total:,} judged, {progress.failed:,} failed; "
            f"{budget.input_tokens:,} input and {budget.output_tokens:,} output tokens in this folder, cost {cost}",
            quiet=quiet,
        )
        if progress.judged:
            report = _report(folder, by_model, margin)
            _print(report, folder, as_json=as_json)
    if stopped is not None:
        raise stopped
    if not progress.judged:
        raise FromScratchError(f"nothing was judged: {next(iter(progress.reasons.values()))}")
    if progress.failed:
        note(f"notice: {progress.failed:,} requests failed; the same command asks them again")


class _Printer:
    """Prints how far a command is, about twenty times."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._every, self._quiet, self._printed = max(1, total // PROGRESS_LINES), quiet, 0

    def __call__(self, progress: "Progress") -> None:
        done = progress.judged + progress.failed
        if done // self._every > self._printed:
            self._printed = done // self._every
            note(f"{progress.judged:,} of {progress.total:,} judged, {progress.failed:,} failed", quiet=self._quiet)


@app.command()
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="DIR|FILE...", help="A results folder, or JSON lists of scores of another judge."),
    ],
    losses: LossesOption = None,
    margin: MarginOption = 5.0,
    as_json: JsonFlag = False,
) -> None:
    """Make the report of a results folder again, such as after 'judge label'; or report lists of scores.

    Example: fromscratch judge report judged --losses runs
    """
    from fromscratch.judging.folder import ResultsFolder
    from fromscratch.judging.scores import read_losses, report_scores
    from fromscratch.judging.writing import shown

    if sources[0].is_dir():
        if len(sources) > 1:
            raise UsageError(f"judge report {sources[0]}: one results folder at a time; judges are never mixed")
        folder = ResultsFolder(sources[0])
        models = folder.answers().models
        _print(_report(folder, read_losses(losses, models) if losses else None, margin), folder, as_json=as_json)
        return
    if losses:
        raise UsageError("--losses: is for a results folder, not for lists of scores")
    lists, differences = report_scores(sources, margin=margin)
    if as_json:
        print_json({"scores": [asdict(one) for one in lists], "differences": [asdict(one) for one in differences]})
        return
    print_columns(
        ["scores", "mean", "questions", "missing"],
        [[one.name, shown(one.mean, 2), str(one.scores), str(one.missing)] for one in lists],
    )
    for one in differences:
        print(f"{one.name} - {one.other}: {shown(one.mean, 2, sign=True)}: {one.name} is {one.verdict}")


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

    opened = ResultsFolder(folder)
    answers = opened.answers()
    drawn = draw_pairs(answers, pairs, seed)
    if not drawn:
        raise UsageError(f"{folder}: has one model only; labels compare the answers of two")
    if len(drawn) < pairs:
        note(f"notice: there are {len(drawn):,} pairs")
    labelled, new = ask_labels(opened.labels, answers, drawn, Asker(answers, len(drawn)))
    print(f"{labelled} of {len(drawn)} pairs labelled, {new} now")
    if new:
        note(f"fromscratch judge report {folder} uses them")


def _report(folder: "ResultsFolder", losses: Any, margin: float) -> "Report":
    """Makes and writes the report, and the annotated answers, of what the folder's last command judges."""
    from fromscratch.judging.labels import read_labels
    from fromscratch.judging.report import make_report
    from fromscratch.judging.writing import annotate, write_report

    answers = folder.answers()
    tasks = folder.tasks(answers)
    judgements = folder.judgements(tasks)
    labels = list(read_labels(folder.labels, answers))
    made = make_report(
        answers, folder.mode, tasks, judgements, folder.tried(), labels=labels, losses=losses, margin=margin
    )
    folder.write_annotated(answers, annotate(answers, tasks, judgements, is_paired=folder.mode.is_paired))
    write_report(folder, made)
    return made


def _print(report: "Report", folder: "ResultsFolder", *, as_json: bool) -> None:
    from fromscratch.judging.writing import PAIRS, agreement, shown, strength_of

    if as_json:
        print_json(asdict(report))
        return
    is_paired = report.mode == PAIRS
    print_columns(
        ["model", "won, %" if is_paired else "score", "at equal place and length", "questions", "failed"],
        [
            [m.model, shown(m.mean), shown(m.strength, 2, sign=True), str(m.questions), str(m.failed)]
            for m in report.models
        ],
    )
    for d in report.differences:
        print(f"{d.model} - {d.other}: {shown(d.mean, sign=True)} points: {d.model} is {d.verdict}")
        corrected = strength_of(d.strength, is_paired=is_paired)
        print(f"  at equal place and length: {corrected}: {d.model} is {d.corrected_verdict}")
    for c in report.corrected:
        corrected = shown(c.corrected, 3)
        print(f"{c.model} better than {c.other}: {corrected} of questions, corrected by {c.labels} labels")
    print(f"agreement of the judge with itself: {agreement(report.agreement)}")
    for text in report.notes:
        note(f"notice: {text}")
    print(f"report: {folder.path / 'report.md'}")
