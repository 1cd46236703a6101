"""A picture of the speed table: tokens per second over micro-batch, a line per recipe."""

import io
from pathlib import Path

from fromscratch.files import write_atomically
from fromscratch.planning.bench import REFERENCE, Row

COLOURS = ("#1f4e79", "#2e8b57", "#7b3f99", "#b8860b", "#008b8b", "#555555")
REFERENCE_COLOUR = "#c55a11"


def draw_speed(path: Path, rows: list[Row], title: str) -> None:
    """Writes the picture as a PNG file; lines that could not be measured are left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = iter(COLOURS * len(rows))
    for label, points in _lines(rows).items():
        is_reference = label.startswith(REFERENCE)
        colour = REFERENCE_COLOUR if is_reference else next(colours)
        axes.plot(*zip(*points, strict=True), marker="o", color=colour, linestyle="--" if is_reference else "-")
        axes.annotate(label, points[-1], xytext=(6, 0), textcoords="offset points", color=colour, va="center")
    axes.set_title(title, loc="left")
    axes.set_xlabel("micro-batch (sequences)")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    micro_batches = sorted({row.micro_batch for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(micro_batches, [f"{n:,}" for n in micro_batches])
    axes.minorticks_off()
    axes.set_xlim(micro_batches[0] / 1.2, micro_batches[-1] * 1.2)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    write_atomically(path, picture.getvalue())


def _lines(rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row.micro_batch):
        if row.tokens_per_second is not None:
            label = f"{row.recipe}, {row.precision}" + (", compiled" if row.compile else "")
            lines.setdefault(label, []).append((row.micro_batch, row.tokens_per_second))
    return lines
