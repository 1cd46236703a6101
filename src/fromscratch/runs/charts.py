"""Pictures of a run, drawn from its records alone: loss, gradient norm, learning rate."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromscratch.files import write_atomically
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_outcomes, read_records, read_thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (8.0, 4.5)
DOTS_PER_INCH = 120
MOST_POINTS = 2_000
LARGEST_DRAWN = 1e100  # what lies beyond is no measurement, and overflows the arithmetic of axes
LARGEST_STEP = 1e15
INK, BAND, ACCENT, WARNING = "#1f4e79", "#9dc3e6", "#c55a11", "#c00000"

OUTCOME_MARKS = {  # label, marker, height as a share of the axis, colour
    "nonfinite": ("not finite", "x", 0.97, WARNING),
    "infinite-norm": ("finite, but not their norm", "^", 0.93, WARNING),
    "scale-overflow": ("overflow of the loss scale", "v", 0.89, "#7030a0"),
    "spike": ("spike of the loss", "*", 0.85, "#548235"),
    "clipped": ("clipped", "|", 0.02, ACCENT),
}

Series = list[tuple[float, float]]


def draw_charts(run: RunDirectory, *, clip_norm: float | None = None) -> list[Path]:
    """Writes ``charts/loss.png``, ``gradient-norm.png`` and ``learning-rate.png``; returns their paths."""
    metrics = read_thinned(run.metrics, MOST_POINTS)
    evaluations = [record for record in read_records(run.events) if record.get("event") == "evaluation"]
    held_out = sorted(dict(_points(evaluations, "loss")).items())
    run.charts.mkdir(exist_ok=True)
    return [
        _draw(run.charts / "loss.png", f"{run.name}: loss", lambda axes: draw_loss(axes, metrics, held_out)),
        _draw(
            run.charts / "gradient-norm.png",
            f"{run.name}: gradient norm",
            lambda axes: draw_gradient_norm(axes, metrics, clip_norm, read_outcomes(run.metrics)),
        ),
        _draw(
            run.charts / "learning-rate.png",
            f"{run.name}: learning rate",
            lambda axes: draw_learning_rate(axes, metrics),
        ),
    ]


def draw_loss(axes: "Axes", metrics: list[dict[str, Any]], held_out: Series) -> None:
    """Training loss with the band of its micro-batches, held-out loss, and where that was lowest."""
    low, high = _points(metrics, "loss_min"), dict(_points(metrics, "loss_max"))
    band = [(step, least, high[step]) for step, least in low if step in high]
    if any(least != most for _, least, most in band):
        steps, lowest, highest = zip(*band, strict=True)
        label = "micro-batches, lowest to highest"
        axes.fill_between(steps, lowest, highest, color=BAND, alpha=0.6, linewidth=0, label=label)
    losses = _points(metrics, "loss")
    smooth = len(losses) > 100
    _plot(axes, losses, linewidth=0.8, alpha=0.35 if smooth else 1.0, label="training")
    if smooth:
        _plot(axes, smoothed(losses), linewidth=1.6, label="training, running median")
    if held_out:
        axes.plot(*_columns(held_out), color=ACCENT, marker="o", markersize=3.5, linewidth=1.6, label="held out")
        step, loss = min(held_out, key=lambda point: point[1])
        axes.plot([step], [loss], marker="*", markersize=13, color=ACCENT, label=f"best: {loss:.3f} at step {step:.0f}")
    _mark_nonfinite(axes, metrics, "loss")
    axes.set_ylabel("loss (nats per token)")
    _limit_to_typical(axes, [value for _, value in losses + held_out], [value for _, *pair in band for value in pair])


def draw_gradient_norm(
    axes: "Axes",
    metrics: list[dict[str, Any]],
    clip_norm: float | None,
    outcomes: dict[str, list[int]] | None = None,
) -> None:
    """Norm of the gradient before clipping, the clip line, and where and how often a step was not normal.

    Args:
        outcomes: steps by outcome (``read_outcomes``); without them, steps whose norm was not finite are marked.
    """
    norms = _points(metrics, "grad_norm")
    _plot(axes, norms, linewidth=0.8, label="before clipping")
    if norms and clip_norm is not None:
        axes.axhline(clip_norm, color=ACCENT, linestyle="--", linewidth=1.2, label=f"clipped above {clip_norm:g}")
    if outcomes:
        _mark_outcomes(axes, outcomes)
    else:
        _mark_nonfinite(axes, metrics, "grad_norm")
    if any(value > 0 for _, value in norms):
        axes.set_yscale("log")
    axes.set_ylabel("gradient norm")


def _mark_outcomes(axes: "Axes", outcomes: dict[str, list[int]]) -> None:
    """A row of marks per outcome along the edge, each with its count."""
    transform = axes.get_xaxis_transform()
    for outcome, (label, marker, height, colour) in OUTCOME_MARKS.items():
        steps = [step for step in outcomes.get(outcome, []) if step < LARGEST_STEP]
        if steps:
            drawn = steps[:: max(1, len(steps) // MOST_POINTS)]
            text = f"{label}: {len(steps):,} {'step' if len(steps) == 1 else 'steps'}"
            axes.plot(drawn, [height] * len(drawn), marker, color=colour, transform=transform, label=text)


def draw_learning_rate(axes: "Axes", metrics: list[dict[str, Any]]) -> None:
    """The learning rate of every step."""
    _plot(axes, _points(metrics, "learning_rate"), linewidth=1.6, label="learning rate")
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)


def smoothed(points: Series) -> Series:
    """A running median over about a fiftieth of the points on either side.

    Centred, so it does not lag; a median, so one spike leaves no plateau. It begins a little late and ends
    a little early, because few points on either side would make it jump there.
    """
    reach = max(1, len(points) // 50)
    least = reach // 3
    smooth = []
    for index, (step, _) in enumerate(points[least : len(points) - least], least):
        near = min(reach, index, len(points) - 1 - index)
        window = sorted(value for _, value in points[index - near : index + near + 1])
        smooth.append((step, window[near]))
    return smooth


def _plot(axes: "Axes", points: Series, *, linewidth: float, label: str, alpha: float = 1.0) -> None:
    """A line, or a dot where there is but one point; nothing where there is none."""
    if points:
        marker = "o" if len(points) == 1 else ""
        axes.plot(*_columns(points), color=INK, linewidth=linewidth, alpha=alpha, label=label, marker=marker)


def _draw(path: Path, title: str, draw: Callable[["Axes"], None]) -> Path:
    picture = io.BytesIO()
    figure_of(title, draw).savefig(picture, format="png")
    write_atomically(path, picture.getvalue())
    return path


def figure_of(title: str, draw: Callable[["Axes"], None]) -> "Figure":
    """A figure over the steps of a run, with a legend, or with words where there is nothing to draw."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(len(line.get_xdata()) for line in axes.get_lines()):  # type: ignore[arg-type]
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no steps recorded yet", transform=axes.transAxes, ha="center")
    return figure


def _mark_nonfinite(axes: "Axes", metrics: list[dict[str, Any]], key: str) -> None:
    steps = [step for r in metrics if (step := _step(r)) is not None and r.get(key, 0) is None]
    if steps:
        transform = axes.get_xaxis_transform()
        label = f"not finite: {len(steps)} {'step' if len(steps) == 1 else 'steps'}"
        axes.plot(steps, [0.97] * len(steps), "x", color=WARNING, transform=transform, label=label)


def _limit_to_typical(axes: "Axes", values: list[float], band: list[float]) -> None:
    """Keeps one spike from flattening the rest: such an axis ends a little above the 99.5th percentile."""
    if len(values) <= 50:
        return
    ordered = sorted(values + band)
    bottom, top, highest = ordered[0], ordered[int(0.995 * (len(ordered) - 1))], ordered[-1]
    if highest - bottom > 2 * (top - bottom) > 0:
        margin = 0.05 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def _points(records: list[dict[str, Any]], key: str) -> Series:
    pairs = ((_step(r), _number(r.get(key))) for r in records)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _columns(points: Series) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _step(record: dict[str, Any]) -> float | None:
    step = _number(record.get("step"))
    return step if step is not None and abs(step) < LARGEST_STEP else None


def _number(value: Any) -> float | None:
    """A finite number that can be drawn, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST_DRAWN else None
