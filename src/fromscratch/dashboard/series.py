"""Series of a chart, thinned for the screen: extremes are kept, and medians are taken over all points.

A series is a dictionary that ``static/charts.js`` draws: ``kind`` (line, band, points, marks, level), ``label``,
``colour`` (an index), ``x``, and ``y`` or ``low`` and ``high``.
"""

from collections.abc import Iterable, Iterator
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


def finite(*values: NDArray[Any]) -> tuple[Floats, ...]:
    """The points at which all values can be drawn."""
    columns = [np.asarray(value, np.float64) for value in values]
    with np.errstate(invalid="ignore"):
        keep = np.logical_and.reduce([np.abs(column) < MAX_DRAWN for column in columns])
    return tuple(column[keep] for column in columns)


def line(label: str, x: NDArray[Any], y: NDArray[Any], **look: Any) -> Series:
    """A line through all points; of many, through the lowest and the highest of each bin, in order."""
    if len(x) > 2 * MAX_BINS:
        parts = list(_by_bin(x, y))
        keep = [np.unique([part[1].argmin(), part[1].argmax()]) for part in parts]
        if parts:
            keep[0], keep[-1] = np.unique([0, *keep[0]]), np.unique([*keep[-1], len(parts[-1][0]) - 1])
        x, y = (_flat(part[column][kept] for part, kept in zip(parts, keep, strict=True)) for column in (0, 1))
    x, y = finite(x, y)
    return {"kind": "line", "label": label, "x": numbers(x), "y": numbers(y), **look}


def median_line(label: str, x: NDArray[Any], y: NDArray[Any], **look: Any) -> Series:
    """The running median over 2% of the points on each side; of many points, at some places. Empty below 100 points."""
    count = len(x)
    if count > 2 * MAX_BINS:
        side = count // 50
        places = np.linspace(side // 3, count - 1 - side // 3, MAX_BINS // 2).astype(int)
        sides = np.minimum(side, np.minimum(places, count - 1 - places))
        windows = (finite(y[at - own : at + own + 1])[0] for at, own in zip(places, sides, strict=True))
        x, y = x[places], np.array([np.median(window) if len(window) else np.nan for window in windows])
    else:
        x, y = finite(x, y)
        found = running_median(list(zip(x.tolist(), y.tolist(), strict=True))) if len(x) >= 100 else []
        x, y = np.array([place for place, _ in found]), np.array([median for _, median in found])
    return line(label, x, y, **look)


def band(label: str, x: NDArray[Any], low: NDArray[Any], high: NDArray[Any], **look: Any) -> Series:
    """An area between two lines; of many points, from the lowest to the highest of each bin."""
    if len(x) > MAX_BINS:
        parts = list(_by_bin(x, low, high))
        x = np.array([(part[0][0] + part[0][-1]) / 2 for part in parts])
        low, high = np.array([part[1].min() for part in parts]), np.array([part[2].max() for part in parts])
    x, low, high = finite(x, low, high)
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
    all_values = np.concatenate([np.empty(0, np.float32), *(one.astype(np.float32) for one in values)])
    with np.errstate(invalid="ignore"):
        all_values = all_values[np.abs(all_values) < MAX_DRAWN]
    if len(all_values) <= 50:
        return None, ""
    bottom, top = np.quantile(all_values, [0.0, 0.995])
    highest = all_values.max()
    if not highest - bottom > 2 * (top - bottom) > 0:
        return None, ""
    margin = 0.05 * (top - bottom)
    return [float(bottom - margin), float(top + margin)], f"values up to {highest:,.4g} lie above the axis"


def _by_bin(*columns: NDArray[Any]) -> Iterator[tuple[Floats, ...]]:
    """Yields the points of bins of nearly equal size that can be drawn; bin by bin, so that little memory is taken."""
    edges = np.linspace(0, len(columns[0]), MAX_BINS + 1).astype(int).tolist()
    for begin, end in pairwise(edges):
        part = finite(*(column[begin:end] for column in columns))
        if len(part[0]):
            yield part


def _flat(parts: Iterable[Floats]) -> Floats:
    return np.concatenate([np.empty(0), *parts])
