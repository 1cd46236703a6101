"""Draws the speed table: tokens per second by micro-batch, one line per recipe."""

from pathlib import Path
from typing import TYPE_CHECKING

from fromscratch.planning.bench import REFERENCE, Row
from fromscratch.runs.charts import figure_of, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_speed(path: Path, rows: list[Row], title: str) -> None:
    """Writes the chart as a PNG file. Leaves out rows without a measured speed."""
    write_picture(path, figure_of(title, lambda axes: _draw_lines(axes, rows)))


def _draw_lines(axes: "Axes", rows: list[Row]) -> None:
    for label, points in _points_by_recipe(rows).items():
        line_style = "--" if label.startswith(REFERENCE) else "-"
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=line_style, label=label)
    axes.set_xlabel("micro-batch (sequences)")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    micro_batches = sorted({row.micro_batch for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(micro_batches, [f"{n:,}" for n in micro_batches])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _points_by_recipe(rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row.micro_batch):
        if row.tokens_per_second is not None:
            label = f"{row.recipe}, {row.precision}" + (", compiled" if row.compile else "")
            points.setdefault(label, []).append((row.micro_batch, row.tokens_per_second))
    return points
