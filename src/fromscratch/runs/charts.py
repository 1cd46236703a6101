"""Pictures of a run, drawn from its records alone: loss, gradient norm, learning rate."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (8.0, 4.5)
DOTS_PER_INCH = 120
MOST_POINTS = 2_000
INK, BAND, ACCENT, WARNING = "#1f4e79", "#9dc3e6", "#c55a11", "#c00000"

Series = list[tuple[float, float]]


def draw_charts(run: RunDirectory, *, clip_norm: float | None = None) -> list[Path]:
    """Writes ``charts/loss.png``, ``gradient-norm.png`` and ``learning-rate.png``; returns their paths."""
    metrics = thin(list(read_records(run.metrics)), MOST_POINTS)
    evaluations = [record for record in read_records(run.events) if record.get("event") == "evaluation"]
    held_out = sorted(dict(_points(evaluations, "loss")).items())
    run.charts.mkdir(exist_ok=True)
    return [
        _draw(run.charts / "loss.png", f"{run.name}: loss", lambda axes: draw_loss(axes, metrics, held_out)),
        _draw(
            run.charts / "gradient-norm.png",
            f"{run.name}: gradient norm",
            lambda axes: draw_gradient_norm(axes, metrics, clip_norm),
        ),
        _draw(
            run.charts / "learning-rate.png",
            f"{run.name}: learning rate",
            lambda axes: draw_learning_rate(axes, metrics),
        ),
    ]


def draw_loss(axes: "Axes", metrics: list[dict[str, Any]], held_out: Series) -> None:
    """Training loss with the band of its micro-batches, held-out loss, and where that was lowest."""
    band = [r for r in metrics if all(_number(r.get(key)) is not None for key in ("loss_min", "loss_max"))]
    if any(r["loss_min"] != r["loss_max"] for r in band):
        steps = [r["step"] for r in band]
        axes.fill_between(
            steps,
            [r["loss_min"] for r in band],
            [r["loss_max"] for r in band],
            color=BAND,
            alpha=0.6,
            linewidth=0,
            label="micro-batches, lowest to highest",
        )
    losses = _points(metrics, "loss")
    smooth = len(losses) > 100
    axes.plot(*_columns(losses), color=INK, linewidth=0.8, alpha=0.35 if smooth else 1.0, label="training")
    if smooth:
        axes.plot(*_columns(smoothed(losses)), color=INK, linewidth=1.6, label="training, running mean")
    if held_out:
        axes.plot(*_columns(held_out), color=ACCENT, marker="o", markersize=3.5, linewidth=1.6, label="held out")
        step, loss = min(held_out, key=lambda point: point[1])
        axes.plot([step], [loss], marker="*", markersize=13, color=ACCENT, label=f"best: {loss:.3f} at step {step:.0f}")
    _mark_nonfinite(axes, metrics, "loss")
    axes.set_ylabel("loss (nats per token)")
    _limit_to_typical(axes, [value for _, value in losses + held_out])


def draw_gradient_norm(axes: "Axes", metrics: list[dict[str, Any]], clip_norm: float | None) -> None:
    """Norm of the gradient before clipping, the clip line, and steps whose norm was not finite."""
    norms = _points(metrics, "grad_norm")
    axes.plot(*_columns(norms), color=INK, linewidth=0.8, label="before clipping")
    if clip_norm is not None:
        axes.axhline(clip_norm, color=ACCENT, linestyle="--", linewidth=1.2, label=f"clipped above {clip_norm:g}")
    _mark_nonfinite(axes, metrics, "grad_norm")
    if any(value > 0 for _, value in norms):
        axes.set_yscale("log")
    axes.set_ylabel("gradient norm")


def draw_learning_rate(axes: "Axes", metrics: list[dict[str, Any]]) -> None:
    """The learning rate of every step."""
    axes.plot(*_columns(_points(metrics, "learning_rate")), color=INK, linewidth=1.6, label="learning rate")
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)


def smoothed(points: Series) -> Series:
    """An exponential running mean over about a fiftieth of the points, without the bias of its start."""
    decay = 1.0 - 50.0 / max(100, len(points))
    mean, weight, smooth = 0.0, 0.0, []
    for step, value in points:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        smooth.append((step, mean / weight))
    return smooth


def thin(records: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most about ``most`` records, evenly taken; those with non-finite values always stay."""
    stride = max(1, len(records) // most)
    return [r for i, r in enumerate(records) if i % stride == 0 or i == len(records) - 1 or r.get("nonfinite")]


def _draw(path: Path, title: str, draw: Callable[["Axes"], None]) -> Path:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel("optimiser step")
    axes.grid(alpha=0.25)
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(len(line.get_xdata()) for line in axes.get_lines()):  # type: ignore[arg-type]
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no steps recorded yet", transform=axes.transAxes, ha="center")
    figure.savefig(path)
    return path


def _mark_nonfinite(axes: "Axes", metrics: list[dict[str, Any]], key: str) -> None:
    steps = [r["step"] for r in metrics if _number(r.get("step")) is not None and r.get(key, 0) is None]
    if steps:
        transform = axes.get_xaxis_transform()
        label = f"not finite: {len(steps)} steps"
        axes.plot(steps, [0.97] * len(steps), "x", color=WARNING, transform=transform, label=label)


def _limit_to_typical(axes: "Axes", values: list[float]) -> None:
    """Keeps one spike from flattening the rest: the axis ends a little above the 99.5th percentile."""
    if len(values) > 50:
        ordered = sorted(values)
        top, bottom = ordered[int(0.995 * (len(ordered) - 1))], ordered[0]
        margin = 0.05 * (top - bottom) or 0.1
        axes.set_ylim(bottom - margin, top + margin)


def _points(records: list[dict[str, Any]], key: str) -> Series:
    pairs = ((_number(r.get("step")), _number(r.get(key))) for r in records)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _columns(points: Series) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _number(value: Any) -> float | None:
    """A finite number that can be drawn, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) < 1e300 else None
