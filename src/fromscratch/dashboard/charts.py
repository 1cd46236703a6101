"""The charts of runs as data: what ``static/charts.js`` draws, by name of the chart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.dashboard import series
from fromscratch.dashboard.metrics import Metrics
from fromscratch.runs.charts import OUTCOME_MARKS
from fromscratch.runs.costs import SessionCost
from fromscratch.runs.states import StepOutcome

Chart = dict[str, Any]
NATS = "loss (nats per token)"
AXES = {"step": "optimiser step", "tokens": "tokens", "hours": "hours of training", "dollars": "dollars"}
FAINT = 0.35
OUTCOME_COLOURS = {
    StepOutcome.NONFINITE: 4,
    StepOutcome.INFINITE_NORM: 6,
    StepOutcome.SCALE_OVERFLOW: 3,
    StepOutcome.SPIKE: 2,
    StepOutcome.CLIPPED: 1,
}


@dataclass(frozen=True)
class RunData:
    """What the charts of one run are drawn from."""

    metrics: Metrics
    held_out: Mapping[int, float]
    """Held-out loss by step."""
    clip_norm: float | None = None
    sessions: tuple[SessionCost, ...] = ()

    def within(self, first: float | None, last: float | None) -> "RunData":
        """The steps of a range; None means no limit."""
        if first is None and last is None:
            return self
        begin = 0 if first is None else int(np.searchsorted(self.metrics.step, first))
        end = len(self.metrics.step) if last is None else int(np.searchsorted(self.metrics.step, last, "right"))
        part = slice(max(0, begin - 1), end + 1)  # with a neighbour, so that lines reach the edge
        metrics = Metrics(
            self.metrics.step[part],
            {name: column[part] for name, column in self.metrics.values.items()},
            self.metrics.outcome[part],
            self.metrics.skipped,
        )
        held_out = {
            step: loss
            for step, loss in self.held_out.items()
            if (first is None or step >= first) and (last is None or step <= last)
        }
        return RunData(metrics, held_out, self.clip_norm, self.sessions)

    def places(self, axis: str) -> NDArray[Any]:
        """Where each step lies on an axis of ``AXES``."""
        if axis == "tokens":
            return self.metrics.values["tokens"]
        seconds = np.nan_to_num(self.metrics.values["seconds"].astype(np.float64))
        if axis == "hours":
            return np.cumsum(seconds) / 3600
        return np.cumsum(seconds * self._prices()) / 3600 if axis == "dollars" else self.metrics.step

    def _prices(self) -> NDArray[np.float64]:
        """Dollars per hour at each step; NaN where the session's price is unknown."""
        prices = [np.nan if one.dollars_per_hour is None else one.dollars_per_hour for one in self.sessions]
        session = np.searchsorted([one.first_step for one in self.sessions], self.metrics.step - 1, "right") - 1
        return np.array([*prices, np.nan])[session] if prices else np.full(len(self.metrics.step), np.nan)

    def held_out_points(self, axis: str = "step") -> tuple[NDArray[Any], NDArray[Any]]:
        """Places and held-out losses in order."""
        steps = np.array(sorted(self.held_out), np.int64)
        losses = np.array([self.held_out[step] for step in steps.tolist()], np.float64)
        if axis == "step":
            return steps, losses
        known = np.searchsorted(self.metrics.step, steps, "right") - 1
        places = self.places(axis).astype(np.float64)
        start = 0.0 if np.isfinite(places).any() else np.nan  # step 0 has cost nothing
        return np.append(places, start)[known], losses


def loss(data: RunData) -> Chart:
    """Training loss with the range of its micro-batches, held-out losses, and the steps without a finite loss."""
    steps, values = data.metrics.step, data.metrics.values
    low, high = values["loss_min"], values["loss_max"]
    held_out = data.held_out_points()
    shown = []
    with np.errstate(invalid="ignore"):
        has_band = bool((high > low).any())
    if has_band:
        shown.append(series.band("micro-batches, lowest to highest", steps, low, high, colour=0, opacity=0.16))
    median = series.median_line("training, running median", steps, values["loss"], colour=0, width=2.2)
    faint = {"opacity": FAINT, "width": 1} if median["x"] else {"width": 1.6}
    shown += [series.line("training", steps, values["loss"], colour=0, **faint), median]
    shown.append(series.points("held out", *held_out, colour=1))
    if len(lost := data.metrics.steps_of(StepOutcome.NONFINITE)):
        shown.append(series.marks("not finite", lost, colour=4))
    limits, note = series.usual_range(values["loss"], held_out[1])
    return make_chart(shown, NATS, range=limits, notes=[note])


def gradient_norm(data: RunData) -> Chart:
    """The norm before clipping on a logarithmic axis, the clip line, and the steps that were not normal."""
    norms = data.metrics.values["grad_norm"]
    shown = [series.line("before clipping", data.metrics.step, norms, colour=0, width=1.2)]
    if data.clip_norm is not None:
        shown.append(series.level(f"clipped above {data.clip_norm:g}", data.clip_norm, colour=1))
    found = {outcome: data.metrics.steps_of(outcome) for outcome in OUTCOME_MARKS}
    shown += [
        series.marks(OUTCOME_MARKS[outcome][0], steps, colour=OUTCOME_COLOURS[outcome])
        for outcome, steps in found.items()
        if len(steps)
    ]
    return make_chart(shown, "gradient norm", log=True)


def learning_rate(data: RunData) -> Chart:
    """The learning rate of each step."""
    rates = series.line("learning rate", data.metrics.step, data.metrics.values["learning_rate"], colour=0, width=2)
    return make_chart([rates], "learning rate", zero=True)


def speed(data: RunData) -> Chart:
    """Tokens per second."""
    steps, speeds = data.metrics.step, data.metrics.values["tokens_per_second"]
    median = series.median_line("running median", steps, speeds, colour=2, width=2.2)
    faint = {"opacity": FAINT, "width": 1} if median["x"] else {"width": 1.6}
    each = series.line("each step", steps, speeds, colour=2, **faint)
    return make_chart([each, median], "tokens per second", zero=True)


def auxiliary(data: RunData) -> Chart:
    """Further numbers that the run records."""
    shown = [
        series.line(name, data.metrics.step, data.metrics.values[name], colour=number, width=1.6)
        for number, name in enumerate(data.metrics.auxiliary)
    ]
    return make_chart(shown, "value")


RUN_CHARTS: dict[str, Callable[[RunData], Chart]] = {
    "loss": loss,
    "gradient-norm": gradient_norm,
    "learning-rate": learning_rate,
    "speed": speed,
    "auxiliary": auxiliary,
}


def overlaid(runs: Mapping[str, RunData], axis: str, column: str) -> Chart:
    """One column of several runs, by label; of the loss also the held-out ones."""
    shown, values = [], []
    for number, (label, data) in enumerate(runs.items()):
        places = data.places(axis)
        own = data.metrics.values.get(column, np.full(len(places), np.nan))
        median = series.median_line(f"{label}, running median", places, own, colour=number, width=2)
        shown.append(median if median["x"] else series.line(label, places, own, colour=number, width=1.6))
        values.append(own)
        if column == "loss" and data.held_out:
            held_out = data.held_out_points(axis)
            shown.append(series.points(f"{label}, held out", *held_out, colour=number, joined=True))
    is_log = column == "grad_norm"
    limits, note = (None, "") if is_log else series.usual_range(*values)
    chart = make_chart(shown, COLUMNS[column], range=limits, notes=[note], log=is_log)
    chart["x"] = {"label": AXES[axis], "key": axis, "whole": axis in ("step", "tokens")}
    if axis == "dollars" and not any(one["x"] for one in shown):
        chart["empty"] = "no price is on record; train with --dollars-per-hour"
    return chart


COLUMNS = {
    "loss": NATS,
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens per second",
}


def forest(rows: list[dict[str, Any]], label: str, *, margin: float | None, first: str, notes: list[str]) -> Chart:
    """Values with intervals, one row each; with ``margin`` they are effects, and small ones are shaded around 0.

    A row has ``arm`` (its name), ``verdict``, ``effect``, ``low``, ``high`` and ``dots``. ``first`` says in a saved
    table what the rows are.
    """
    heads = [first, "verdict", "effect" if margin is not None else "value", "low", "high", "differences of runs"]
    return {"kind": "forest", "margin": margin, "rows": rows, "label": label, "heads": heads, "notes": notes}


def make_chart(
    shown: list[series.Series],
    label: str,
    *,
    log: bool = False,
    zero: bool = False,
    range: list[float] | None = None,  # noqa: A002
    notes: list[str] | None = None,
) -> Chart:
    """A chart by step. ``zero`` makes the axis begin at 0."""
    return {
        "kind": "lines",
        "x": {"label": AXES["step"], "key": "step", "whole": True},
        "y": {"label": label, "log": log, "zero": zero, "range": range},
        "series": [one for one in shown if one["x"] or one["kind"] == "level"],
        "notes": [note for note in notes or [] if note],
        "empty": "no steps recorded yet",
    }
