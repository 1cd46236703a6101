"""What pages show of studies: verdicts, effects with every seed, what is next, evidence over time."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.dashboard import series
from fromscratch.dashboard.charts import NATS, forest, make_chart
from fromscratch.dashboard.figures import Figures, figures_of
from fromscratch.dashboard.run_data import reader_of
from fromscratch.dashboard.site import RefusedRunError, Site, check_contents, run_in
from fromscratch.dashboard.stamps import Memory, stamp_at
from fromscratch.errors import FromScratchError
from fromscratch.runs.states import RunState
from fromscratch.studies.agenda import by_value
from fromscratch.studies.forecasts import Forecast, remaining
from fromscratch.studies.jobs import Job, StudyFolder, is_lost, missing
from fromscratch.studies.past import finding_in
from fromscratch.studies.recorded import RecordedStudy, is_study, open_recorded
from fromscratch.studies.results import (
    Judgement,
    curves_by_arm,
    evidence_by_round,
    held_out_name,
    judge,
    validation_losses,
)
from fromscratch.studies.verdicts import ArmResult
from fromscratch.studies.worth import Worth, dollars_saved, in_words, why, worth_of

MAX_NEXT = 5
BAND_NOTE = "line: mean over all seeds at the steps that all have taken, running median; area: their range"
CHARTS = {
    "effects": "Effect of each arm, its interval, and each run",
    "curves": "Held-out loss minus the baseline's, with the range of seeds",
    "training": "Training loss by arm, with the range of seeds",
    "evidence": "Evidence after each round of seeds",
}


@dataclass(frozen=True)
class ArmRow:
    """One arm in a table."""

    result: ArmResult
    worth: Worth
    why: str
    dollars: str
    changes: tuple[str, ...]
    differences: list[float]
    """Each run's figure minus the baseline's."""


@dataclass(frozen=True)
class StripRow:
    """An arm in a small picture; places are in percent of its width."""

    arm: str
    verdict: str
    says: str
    dots: list[float]
    effect: float | None
    low: float | None
    high: float | None
    margin: tuple[float, float]

    @classmethod
    def of(cls, row: ArmRow, reach: float, margin: float) -> "StripRow":
        """Places the effect, the interval and the runs of an arm."""

        def place(value: float | None) -> float | None:
            known = value is not None and math.isfinite(value)
            return round(50 + 48 * max(-1.0, min(1.0, value / reach)), 2) if known and value is not None else None

        evidence = row.result.evidence
        dots = [found for value in row.differences if (found := place(value)) is not None]
        ends = (place(evidence.low), place(evidence.high)) if evidence else (None, None)
        shade = (place(-margin) or 0.0, place(margin) or 0.0)
        return cls(row.result.arm, str(row.result.verdict), row.why, dots, place(row.result.effect), *ends, shade)


@dataclass(frozen=True)
class StudyView:
    """A study as pages show it."""

    name: str
    problem: str = ""
    """Why there are no verdicts, or why it cannot be opened; empty if there are."""
    recorded: RecordedStudy | None = None
    judgement: Judgement | None = None
    rows: tuple[ArmRow, ...] = ()
    runs: tuple[tuple[Job, Figures | None], ...] = ()
    next_runs: tuple[tuple[Job, str], ...] = ()
    """Waiting runs, the most valuable first, each with what it takes."""
    measured_on: str = ""
    """The texts of the figures."""
    reported: tuple[str, str] | None = None
    """When a report was written, and on which texts."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs by state."""
        states = (one.overview.state.value if one and one.overview else "missing" for _, one in self.runs)
        return dict(Counter(states))

    @property
    def strip(self) -> list["StripRow"]:
        """The effects of all arms on one scale, for a small picture."""
        if self.judgement is None:
            return []
        values = [abs(value) for row in self.rows for value in (*row.differences, row.result.effect or 0.0)]
        reach = 1.1 * max(self.judgement.margin, *values) if values else 1.0
        return [StripRow.of(row, reach, self.judgement.margin) for row in self.rows]

    @property
    def is_running(self) -> bool:
        """Whether one of its runs is trained now."""
        return any(one is not None and one.is_running for _, one in self.runs)


class Studies:
    """The studies of a site, read again only when a file of their runs has changed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._memory = Memory(100)

    def names(self) -> list[str]:
        """Names of the folders that hold a study."""
        return [
            self._site.name_of(path)
            for path in self._site.folders()
            if self._site.is_inside(path) and not run_in(path).exists() and is_study(path)
        ]

    def view(self, name: str) -> StudyView:
        """A study. Raises HTTPException 404 if the folder is gone or leads elsewhere."""
        path = self._site.folder(name)
        return self._memory.get(name, stamp_at(self._site, name), lambda: self._read(name, path))

    def chart(self, name: str, kind: str) -> dict[str, Any]:
        """The data of one of ``CHARTS``."""
        view = self.view(name)
        return self._draw(view, kind)

    def _read(self, name: str, path: Path) -> StudyView:
        try:
            check_contents(path, self._site.root)
            recorded = open_recorded(path)
            figures = figures_of(self._site)
            jobs = recorded.folder.jobs()
            runs = tuple((job, figures.of(job.current) if job.run.exists() else None) for job in jobs)
        except (FromScratchError, RefusedRunError, OSError) as error:
            return StudyView(name, str(error))
        finding = finding_in(path / "report.json")
        forecasts = _forecasts(recorded)
        reported = (str(finding.get("at"))[:40], str(finding.get("measured_on"))[:80]) if finding else None
        folder = recorded.folder
        try:
            judgement = judge(folder, validation_losses(folder), borrowed=recorded.borrowed)
            rows = tuple(_row(recorded, judgement, arm, forecasts) for arm in judgement.result.arms)
            problem = ""
        except (FromScratchError, OSError, ArithmeticError) as error:
            judgement, rows, problem = None, (), str(error)
        try:
            ahead = _next_runs(recorded, judgement, forecasts)
        except (FromScratchError, OSError, ArithmeticError):
            ahead = ()
        measured_on = held_out_name(folder.study)
        return StudyView(name, problem, recorded, judgement, rows, runs, ahead, measured_on, reported)

    def _draw(self, view: StudyView, kind: str) -> dict[str, Any]:
        if view.recorded is None:
            return {**make_chart([], NATS), "empty": view.problem}
        folder = view.recorded.folder
        if kind == "curves":
            return _curves(folder)
        if kind == "training":
            return self._training(folder)
        if view.judgement is None:
            return {**make_chart([], ""), "empty": "no verdicts yet"}
        return _effects(view) if kind == "effects" else _evidence(folder, view.judgement)

    def _training(self, folder: StudyFolder) -> dict[str, Any]:
        reader, stopped, shown = reader_of(self._site), folder.stopped_early(), []
        for number, arm in enumerate(folder.study.all_arms):
            jobs = [job for seed in arm.seeds if (job := folder.job(arm, seed)).run.exists()]
            counted = [job for job in jobs if not is_lost(job, stopped)]
            columns = [
                (data.metrics.step, data.metrics.values["loss"])
                for job in counted
                if len((data := reader.read(self._site.name_of(job.run.path))[0]).metrics.step)
            ]
            if columns:
                steps, losses = at_common_steps(columns)
                shown += _band(arm.name + _lost(len(jobs) - len(counted)), number, steps, losses)
        limits, note = series.usual_range(*(np.array(one["y"], np.float64) for one in shown if one["kind"] == "line"))
        return make_chart(shown, NATS, range=limits, notes=[note, BAND_NOTE])


def at_common_steps(columns: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The steps that all runs have taken, and the values [runs, steps] there."""
    common = columns[0][0]
    for steps, _ in columns[1:]:
        common = np.intersect1d(common, steps, assume_unique=True)
    return common, np.array([values[np.searchsorted(steps, common)] for steps, values in columns], np.float64)


def _band(label: str, colour: int, steps: NDArray[Any], losses: NDArray[np.float64]) -> list[series.Series]:
    """Mean over the seeds, with a running median where there are many steps, and their range."""
    mean = losses.mean(0)
    median = series.median_line(label, steps, mean, colour=colour, width=2, group=label)
    line = series.line(label, steps, mean, colour=colour, width=1.6, group=label)
    band = series.band(f"{label}, range", steps, losses.min(0), losses.max(0), colour=colour, opacity=0.12, group=label)
    return [*([band] if len(losses) > 1 else []), median if median["x"] else line]


def _lost(count: int) -> str:
    return f" ({count} diverged or stopped)" if count else ""


def _row(recorded: RecordedStudy, judgement: Judgement, arm: ArmResult, forecasts: Mapping[str, Forecast]) -> ArmRow:
    worth = worth_of(judgement, arm, forecasts)
    changes = next(one.changes for one in recorded.folder.study.arms if one.name == arm.arm)
    return ArmRow(arm, worth, why(arm, worth), dollars_saved(worth), changes, judgement.differences(arm))


def _forecasts(recorded: RecordedStudy) -> Mapping[str, Forecast]:
    """What a run of each arm takes; what the definition says where the cost of a run is damaged."""
    try:
        return recorded.costs.forecasts()
    except (FromScratchError, OSError, ArithmeticError):
        return recorded.costs.untrained


def _next_runs(
    recorded: RecordedStudy, judgement: Judgement | None, forecasts: Mapping[str, Forecast]
) -> tuple[tuple[Job, str], ...]:
    folder = recorded.folder
    waiting = missing(folder)
    if len(waiting) > 1:
        under_way = [job for job in folder.jobs() if job.state == RunState.RUNNING]
        result = None if judgement is None else judgement.result
        waiting = by_value(folder.study, waiting, under_way, result, forecasts)
    return tuple((job, in_words(remaining(job, forecasts))) for job in waiting[:MAX_NEXT])


def _effects(view: StudyView) -> dict[str, Any]:
    assert view.judgement is not None
    rows = [
        {
            "arm": row.result.arm,
            "verdict": str(row.result.verdict),
            "effect": row.result.effect,
            "low": row.result.evidence and row.result.evidence.low,
            "high": row.result.evidence and row.result.evidence.high,
            "dots": row.differences,
        }
        for row in view.rows
    ]
    lost = sum(len(row.result.runs.diverged) for row in view.rows)
    measure = view.judgement.result.measure
    label = f"effect on the {measure.name}, {measure.scale} ({measure.better_side} of 0 is better)"
    margin = view.judgement.margin
    notes = [f"shaded: effects below {measure.amount(margin)}, which do not matter here"]
    notes += [f"{lost} runs diverged or were stopped: they have no {measure.name}"] if lost else []
    return forest(rows, label, margin=margin, first="arm", notes=notes)


def _curves(folder: StudyFolder) -> dict[str, Any]:
    shown: list[series.Series] = []
    late: list[float] = []
    for number, one in enumerate(curves_by_arm(folder)):
        label, shares = one.arm + _lost(one.lost), np.array(one.shares)
        if one.low != one.high:
            ends = np.array(one.low), np.array(one.high)
            shown.append(series.band(f"{label}, range", shares, *ends, colour=number, opacity=0.12, group=label))
        width = 2 if number else 1.2
        shown.append(series.line(label, shares, np.array(one.mean), colour=number, width=width, group=label))
        begin = next((place for place, share in enumerate(one.shares) if share >= 0.25), len(one.shares))
        late += [*one.low[begin:], *one.high[begin:]]
    limits = [min(late) * 1.1 - 0.001, max(late) * 1.1 + 0.001] if late else None
    chart = make_chart(shown, "held-out loss minus the baseline's, nats", range=limits)
    return {**chart, "x": {"label": "share of the training", "key": "share"}, "empty": "no evaluations yet"}


def _evidence(folder: StudyFolder, judgement: Judgement) -> dict[str, Any]:
    alpha = folder.study.config.alpha
    shown = [series.level(f"1 / alpha = {1 / alpha:.0f}", 1 / alpha, colour=4)]
    for number, (arm, found) in enumerate(evidence_by_round(folder, judgement).items(), start=1):
        rounds, values = np.array([n for n, _ in found]), np.array([value for _, value in found])
        shown.append(series.points(arm, rounds, values, colour=number, joined=True))
    chart = make_chart(shown, "evidence that the arm differs, 1 / p", log=True)
    return {**chart, "x": {"label": "seeds of each arm", "key": "seeds", "whole": True}, "empty": "no verdicts yet"}


@cache
def studies_of(site: Site) -> Studies:
    """The studies that all pages of a site share."""
    return Studies(site)
