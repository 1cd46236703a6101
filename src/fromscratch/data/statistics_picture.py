"""Draws the lengths of the documents of a corpus and the context of a model."""

from pathlib import Path
from typing import TYPE_CHECKING

from fromscratch.data.statistics import Statistics
from fromscratch.runs.charts import write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES, DOTS_PER_INCH = (8.0, 4.5), 120
DOCUMENTS, TOKENS, CONTEXT = "#9dc3e6", "#1f4e79", "#c55a11"


def draw_lengths(statistics: Statistics, path: Path, *, title: str) -> None:
    """Writes a PNG: share of documents (bars) and of tokens (line) by length."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{title}: length of documents", loc="left")
    axes.set_xlabel("tokens per document, end-of-text not counted")
    axes.set_ylabel("share, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if statistics.documents:
        _draw_bins(axes, statistics)
        figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    else:
        axes.text(0.5, 0.5, "no documents", transform=axes.transAxes, ha="center")
    write_picture(path, figure)


def _draw_bins(axes: "Axes", statistics: Statistics) -> None:
    filled = [index for index, b in enumerate(statistics.histogram) if b["documents"]]
    bins = statistics.histogram[filled[0] : filled[-1] + 1]
    first = bins[0]["from"] or 0.5  # a logarithmic axis has no zero
    in_documents = max(1.0, sum(b["tokens"] for b in bins))
    lefts = [max(b["from"], 0.5) for b in bins]
    widths = [b["to"] - left for b, left in zip(bins, lefts, strict=True)]
    axes.bar(
        lefts,
        [100 * b["documents"] / statistics.documents for b in bins],
        width=widths,
        align="edge",
        color=DOCUMENTS,
        edgecolor="white",
        linewidth=0.5,
        label="documents",
    )
    middles = [(left * b["to"]) ** 0.5 for b, left in zip(bins, lefts, strict=True)]
    shares = [100 * b["tokens"] / in_documents for b in bins]
    axes.plot(middles, shares, color=TOKENS, marker="o", markersize=3, linewidth=1.4, label="tokens")
    over, lost = statistics.documents_over_context or 0.0, statistics.tokens_lost_by_cropping or 0.0
    label = f"context {statistics.context:,}: {over:.1%} of documents exceed it, "
    label += f"cropping there would lose {lost:.1%} of tokens, packing none"
    axes.axvline(statistics.context, color=CONTEXT, linestyle="--", linewidth=1.4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(first, statistics.context) / 1.1, max(bins[-1]["to"], statistics.context) * 1.1)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}" if value >= 1 else "0")
    axes.grid(alpha=0.25, axis="y")
