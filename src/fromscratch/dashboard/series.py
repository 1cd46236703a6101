"""Series of a chart, thinned for the screen: extremes are kept, and medians are those of all points.

A series is a dictionary that ``static/charts.js`` draws: ``kind`` (line, band, points, marks, level), ``label``,
``colour`` (an index), ``x``, and ``y`` or ``low`` and ``high``.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.runs.charts import running_median

MAX_BINS = 600
MAX_MARKS = 400
MAX_DRAWN = 1e30
DIGITS = 7

Floats = NDArray[np.float64]
Series = dict[str, Any]


def numbers(values: NDArray[Any]) -> list[float | None]:
    """Values for JSON, with the digits that a screen can show; None where they are not finite."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def finite(x: NDArray[Any], *values: NDArray[Any]) -> tuple[Floats, ...]:
    """The points at which all values can be drawn."""
    columns = [np.asarray(value, np.float64) for value in (x, *values)]
    with np.errstate(invalid="ignore"):
        keep = np.logical_and.reduce([np.abs(column) < MAX_DRAWN for column in columns])
    return tuple(column[keep] for column in columns)


def line(label: str, x: NDArray[Any], y: NDArray[Any], **look: Any) -> Series:
    """A line through all points; of many, through the lowest and the highest of each bin, in order."""
    x, y = finite(x, y)
    if len(x) > 2 * MAX_BINS:
        bins = _bins(len(x))
        lowest, highest = _binned(y, bins, np.argmin), _binned(y, bins, np.argmax)
        keep = np.unique(np.concatenate([[0], lowest, highest, [len(x) - 1]]))
        x, y = x[keep], y[keep]
    return {"kind": "line", "label": label, "x": numbers(x), "y": numbers(y), **look}


def median_line(label: str, x: NDArray[Any], y: NDArray[Any], **look: Any) -> Series:
    """The running median of at least 100 points; of many, the median of all points of each bin. Else empty."""
    x, y = finite(x, y)
    if len(x) <= 2 * MAX_BINS:
        found = running_median(list(zip(x.tolist(), y.tolist(), strict=True))) if len(x) >= 100 else []
        x, y = np.array([place for place, _ in found]), np.array([median for _, median in found])
    else:
        bins = _bins(len(x), max_bins=MAX_BINS // 2)
        y = np.array([np.median(y[begin:end]) for begin, end in bins])
        x = np.array([(x[begin] + x[end - 1]) / 2 for begin, end in bins])
    return {"kind": "line", "label": label, "x": numbers(x), "y": numbers(y), **look}


def band(label: str, x: NDArray[Any], low: NDArray[Any], high: NDArray[Any], **look: Any) -> Series:
    """An area between two lines; of many points, from the lowest to the highest of each bin."""
    x, low, high = finite(x, low, high)
    if len(x) > MAX_BINS:
        bins = _bins(len(x))
        begins = np.array([begin for begin, _ in bins])
        x = (x[begins] + x[[end - 1 for _, end in bins]]) / 2
        low, high = np.minimum.reduceat(low, begins), np.maximum.reduceat(high, begins)
    return {"kind": "band", "label": label, "x": numbers(x), "low": numbers(low), "high": numbers(high), **look}


def points(label: str, x: NDArray[Any], y: NDArray[Any], **look: Any) -> Series:
    """Single points; of many, the lowest and the highest of each bin."""
    return {**line(label, x, y, **look), "kind": "points"}


def marks(label: str, x: NDArray[Any], **look: Any) -> Series:
    """A row of marks at the top of the chart; the label has their number."""
    drawn = np.asarray(x, np.float64)[:: max(1, len(x) // MAX_MARKS)]
    unit = "step" if len(x) == 1 else "steps"
    return {"kind": "marks", "label": f"{label}: {len(x):,} {unit}", "x": numbers(drawn), "y": [], **look}


def level(label: str, y: float, **look: Any) -> Series:
    """A horizontal line."""
    return {"kind": "level", "label": label, "x": [], "y": numbers(np.array([y])), **look}


def usual_range(*values: NDArray[Any]) -> tuple[list[float] | None, str]:
    """Where the axis should end if few values are far above the others, and a note that says so; else None."""
    (all_values,) = finite(np.concatenate([np.asarray(one, np.float64).ravel() for one in values] or [np.empty(0)]))
    if len(all_values) <= 50:
        return None, ""
    bottom, top = np.quantile(all_values, [0.0, 0.995])
    highest = all_values.max()
    if not highest - bottom > 2 * (top - bottom) > 0:
        return None, ""
    margin = 0.05 * (top - bottom)
    return [float(bottom - margin), float(top + margin)], f"values up to {highest:,.4g} lie above the axis"


def _bins(count: int, *, max_bins: int = MAX_BINS) -> list[tuple[int, int]]:
    """Begin and end of bins of nearly equal size."""
    edges = np.linspace(0, count, min(max_bins, count) + 1).astype(int).tolist()
    return [(begin, end) for begin, end in pairwise(edges) if end > begin]


def _binned(y: Floats, bins: list[tuple[int, int]], choose: Any) -> NDArray[np.int64]:
    return np.array([begin + choose(y[begin:end]) for begin, end in bins], np.int64)
