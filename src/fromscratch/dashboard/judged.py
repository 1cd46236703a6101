"""What pages show of the results folders that ``fromscratch judge`` writes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from fromscratch.dashboard.charts import forest, make_chart
from fromscratch.dashboard.site import JUDGED_FILES, RefusedRunError, Site, check_contents
from fromscratch.dashboard.stamps import Memory, stamp_of_all
from fromscratch.errors import DataError, FromScratchError, UsageError
from fromscratch.files import readable_bytes
from fromscratch.finetuning.records import RESPONSE, read_records
from fromscratch.judging.folder import IDENTITY, JUDGED, STATUS, ResultsFolder
from fromscratch.judging.report import Report, SeparatingQuestion
from fromscratch.judging.responses import NAME
from fromscratch.judging.statistics import NO_EFFECT, Estimate
from fromscratch.judging.writing import PAIRS, about_judge
from fromscratch.runs.records import read_records as read_lines
from fromscratch.runs.records import to_count, to_float

MAX_FILE_BYTES = 16 << 20
MAX_TEXT, MAX_REMARKS = 20_000, 20
SHORT = {NO_EFFECT: "no effect"}
CHARTS = {"means": "Mean of each model", "differences": "Differences between models"}
REPORT = TypeAdapter(Report)
DESCRIBED = ("model", "endpoint", "mode", "temperature")
UNKNOWN = dict.fromkeys(DESCRIBED, "")


@dataclass(frozen=True)
class Answer:
    """What one model answered to a question, and what the judge said."""

    model: str
    text: str
    score: float | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class JudgedQuestion:
    """A question on which the models differ most."""

    number: int
    instruction: str
    input: str
    reference: str
    answers: tuple[Answer, ...]
    problem: str = ""
    """Why answers are missing."""


@dataclass(frozen=True)
class JudgedView:
    """A results folder as pages show it."""

    name: str
    path: Path
    judge: dict[str, str]
    """``DESCRIBED``, as ``judge.json`` has it; empty where it is unknown."""
    problem: str = ""
    """Why there is no report; empty if there is one."""
    report: Report | None = None
    replies: tuple[int, int] | None = None
    """Valid and other replies so far, if some came after the report."""
    questions: tuple[JudgedQuestion, ...] = ()

    @property
    def is_paired(self) -> bool:
        """Whether the judge compared two answers at a time."""
        return self.judge["mode"] == PAIRS

    @property
    def about(self) -> list[str]:
        """What is known of the judge itself: place, length, agreement, failures."""
        return [] if self.report is None else list(about_judge(self.report, is_paired=self.is_paired))


class JudgedFolders:
    """The results folders of a site, read again only when one of their files has changed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._memory = Memory(100)

    def all(self) -> list[JudgedView]:
        """Those that are in the folder of runs, or one level below; a folder that leads elsewhere is left out."""
        found = []
        for path in self._site.judged():
            try:
                found.append(self.view(self._site.name_of(path)))
            except (HTTPException, RefusedRunError):
                continue  # its own page says why
        return found

    def view(self, name: str) -> JudgedView:
        """A results folder. Raises HTTPException 404, and RefusedRunError."""
        path = self._site.folder(name)
        if not (path / JUDGED_FILES[0]).exists():
            raise HTTPException(404, f"{name[:200]!r} holds no results of 'fromscratch judge' (any more)")
        check_contents(path, self._site.root)
        stamp = stamp_of_all([], [path / file for file in JUDGED_FILES])
        return self._memory.get(name, stamp, lambda: _read(name, path))


def _read(name: str, path: Path) -> JudgedView:
    try:
        folder = ResultsFolder(path)
    except (FromScratchError, OSError) as error:
        return JudgedView(name, path, UNKNOWN, str(error))
    judge = {key: str(folder.description[IDENTITY].get(key, ""))[:200] for key in DESCRIBED}
    file, replies = path / "report.json", None
    if _is_newer(folder.replies, file):
        states = [record.get(STATUS) == JUDGED for record in read_lines(folder.replies)]
        replies = (sum(states), len(states) - sum(states))
    if not file.exists():
        return JudgedView(name, path, judge, "The judge has not finished.", None, replies)
    try:
        _check_size(file)
        report = REPORT.validate_json(file.read_bytes())
    except (ValidationError, DataError, OSError) as error:
        reason = str(error) if isinstance(error, DataError) else "it is damaged, or of another version"
        return JudgedView(name, path, judge, f"report.json cannot be read: {reason}", None, replies)
    return JudgedView(name, path, judge, "", report, replies, _questions(folder.annotated, report))


def _is_newer(file: Path, other: Path) -> bool:
    try:
        return file.is_file() and (not other.exists() or file.stat().st_mtime_ns > other.stat().st_mtime_ns)
    except OSError:
        return False


def _check_size(file: Path) -> None:
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise DataError(f"{file.name} has {readable_bytes(size)}; up to {readable_bytes(MAX_FILE_BYTES)} are shown")


def _questions(annotated: Path, report: Report) -> tuple[JudgedQuestion, ...]:
    """The questions that separate the models most, each with all answers."""
    numbers = [one.question for one in report.separating]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    problems: list[str] = []
    for model in dict.fromkeys(model for one in report.separating for model in one.scores):
        try:
            found[model] = _records(annotated, model, numbers)
        except (FromScratchError, OSError) as error:
            problems.append(f"the answers of {model[:100]} cannot be read ({error})")
    return tuple(_question(one, found, "; ".join(problems)) for one in report.separating)


def _records(annotated: Path, model: str, numbers: list[int]) -> dict[int, dict[str, Any]]:
    if not NAME.fullmatch(model):
        raise UsageError("it is no name of a model")
    file = annotated / f"{model}.json"
    _check_size(file)
    records = read_records(file).records
    return {number: records[number] for number in numbers if 0 <= number < len(records)}


def _question(one: SeparatingQuestion, found: dict[str, dict[int, dict[str, Any]]], problem: str) -> JudgedQuestion:
    records = {model: by_number.get(one.question) or {} for model, by_number in found.items()}
    asked = next((record for record in records.values() if record), {})
    answers = [
        Answer(model, _text(records.get(model, {}).get(RESPONSE)), score, tuple(_remarks(records.get(model, {}))))
        for model, score in one.scores.items()
    ]
    instruction = _text(asked.get("instruction") or one.instruction)
    context, reference = _text(asked.get("input")), _text(asked.get("output"))
    return JudgedQuestion(one.question, instruction, context, reference, tuple(answers), problem)


def _remarks(record: dict[str, Any]) -> Iterator[str]:
    """What the judge said of an answer, one text for each judgement."""
    said = record.get("judged")
    for one in said[:MAX_REMARKS] if isinstance(said, list) else []:
        if not isinstance(one, dict):
            continue
        where = f"place {to_count(one.get('place'))}"
        won, score = to_float(one.get("won")), to_float(one.get("score"))
        if won is not None:
            yield f"{where}, against {_text(one.get('against'))}: preferred with probability {won:.2f}"
        elif score is not None:
            yield f"{where}: {score:g}. {_text(one.get('comment'))}"


def _text(value: Any) -> str:
    return re.sub(r"\n{3,}", "\n\n", value[:MAX_TEXT].strip()) if isinstance(value, str) else ""


def chart_of(view: JudgedView, kind: str) -> dict[str, Any]:
    """The data of one of ``CHARTS``."""
    report = view.report
    if report is None:
        return {**make_chart([], ""), "empty": view.problem}
    if kind == "means":
        rows = [_row(one.model, "", one.mean) for one in report.models]
        notes = [f"95% intervals over {report.questions} questions"]
        label = "comparisons won, %" if view.is_paired else "mean score"
        return forest(rows, label, margin=None, first="model", notes=notes)
    rows = [_row(f"{one.model} - {one.other}", short(one.verdict), one.mean) for one in report.differences]
    notes = ["right of 0: the first model is better", f"shaded: differences below {report.margin:g} points"]
    notes.append("the intervals hold together with 95%")
    return forest(rows, "difference in points", margin=report.margin, first="models", notes=notes)


def _row(name: str, verdict: str, found: Estimate) -> dict[str, Any]:
    return {"arm": name, "verdict": verdict, "effect": found.value, "low": found.low, "high": found.high, "dots": []}


def short(verdict: str) -> str:
    """A verdict in few words."""
    return SHORT.get(verdict, verdict)[:40]


@cache
def judged_of(site: Site) -> JudgedFolders:
    """The results folders that all pages of a site share."""
    return JudgedFolders(site)
