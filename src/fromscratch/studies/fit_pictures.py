"""Pictures of fitted curves: the data as dots, the curve dashed outside of them, the answer with its interval."""

from typing import TYPE_CHECKING

import numpy as np

from fromscratch.files import readable_bytes
from fromscratch.runs.charts import ACCENT, BAND, INK, figure_of, plain_number, set_log_scale
from fromscratch.studies.contrasts import Floats
from fromscratch.studies.fits import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_POINTS = 300
MAX_TICKS = 10
MARGIN = 0.25
"""Share of the range of the data that the curve is drawn beyond each end."""
MAX_CURVES = 6
FITTED = "fit, dashed outside the data"
SIZES = ("#9dc3e6", "#5b9bd5", "#2e75b6", "#1f4e79", "#c55a11", "#7f3f0c")
"""One colour for each of up to ``MAX_CURVES`` values of a second column, light to dark."""


def draw_fit(fit: Fit, *, is_linear: bool = False) -> "Figure":
    """Draws a fit over its first column; of a second one, one curve for each of its values.

    Args:
        is_linear: whether the axes are linear; by default the column's is logarithmic.
    """

    def draw(axes: "Axes") -> None:
        name, *others = fit.data
        if not is_linear:
            axes.set_xscale("log")
        if others:
            _draw_family(axes, fit, name, others[0], is_linear=is_linear)
        else:
            axes.plot(fit.data[name], fit.observed, "o", color=INK, alpha=0.7, markersize=5, label="measured")
            _draw_curve(axes, fit, name, {}, fit.data[name], INK, is_linear=is_linear, label=FITTED)
            _mark_answer(axes, fit)
        axes.set_xlabel(name.replace("_", " "))
        axes.set_ylabel(fit.y_name.replace("_", " "))
        places = sorted(set(fit.data[name]))
        if not is_linear and 2 < len(places) <= MAX_TICKS:
            axes.set_xticks(places, minor=False)
            axes.minorticks_off()
        if fit.answer == "critical":
            set_log_scale(axes)  # the norms at the two sizes differ by orders of magnitude
        axes.xaxis.set_major_formatter(_short)
        axes.yaxis.set_major_formatter(_bytes if fit.y_name.endswith("bytes") else _short)
        axes.set_title(fit.formula, loc="left", fontsize=9)

    return figure_of("", draw)


def _bytes(value: float, _place: float = 0) -> str:
    return readable_bytes(round(value))


def _short(value: float, _place: float = 0) -> str:
    """Formats a number of an axis: 4e8 as 400M, 1.2e9 as 1.2B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return plain_number(value)


def _draw_curve(
    axes: "Axes",
    fit: Fit,
    name: str,
    fixed: dict[str, float],
    measured: tuple[float, ...],
    colour: str,
    *,
    is_linear: bool,
    label: str,
) -> None:
    """A solid line within the range of the data and a dashed one outside."""
    x, (low, high) = _places(fit.data[name], is_linear=is_linear), (min(measured), max(measured))
    y = np.asarray(fit.curve(**{name: x}, **fixed))
    inside = (x >= low) & (x <= high)
    axes.plot(x, y, "--", color=colour, linewidth=1.0, alpha=0.8)
    axes.plot(x[inside], y[inside], "-", color=colour, linewidth=1.8, label=label)


def _places(column: tuple[float, ...], *, is_linear: bool) -> Floats:
    ends = np.array([min(column), max(column)]) if is_linear else np.log([min(column), max(column)])
    reach = MARGIN * (ends[1] - ends[0])
    places = np.linspace(max(ends[0] - reach, 0.0) if is_linear else ends[0] - reach, ends[1] + reach, NUM_POINTS)
    places = places if is_linear else np.exp(places)
    return np.asarray(np.unique([*places, min(column), max(column)]), dtype=np.float64)


def _draw_family(axes: "Axes", fit: Fit, name: str, other: str, *, is_linear: bool) -> None:
    """Dots and a curve for each value of the second column; of many values, evenly spaced ones have a curve."""
    values = sorted(set(fit.data[other]))
    drawn = [values[round(i)] for i in np.linspace(0, len(values) - 1, min(len(values), MAX_CURVES))]
    for value in values:
        nearest = min(drawn, key=lambda one: abs(np.log(one / value)))
        colour = SIZES[drawn.index(nearest) % len(SIZES)]
        rows = [(x, y) for x, z, y in zip(fit.data[name], fit.data[other], fit.observed, strict=True) if z == value]
        axes.plot(*zip(*rows, strict=True), "o", color=colour, markersize=5)
        if value in drawn:
            measured = tuple(x for x, _ in rows)
            label = f"{_short(value)} {other}"
            _draw_curve(axes, fit, name, {other: value}, measured, colour, is_linear=is_linear, label=label)


def _mark_answer(axes: "Axes", fit: Fit) -> None:
    """A line at the answer, and a band over the part of its interval that the picture shows."""
    if not fit.answer:
        return
    found, (low, high) = fit.parameters[fit.answer], axes.get_xlim()
    label = f"{fit.answer}: {found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
    if low <= found.value <= high:
        axes.axvline(found.value, color=ACCENT, linewidth=1.4, label=label)
    else:
        axes.plot([], [], color=ACCENT, label=f"{label}, outside the picture")
    begin, end = max(low, found.low), min(high, found.high)
    if begin < end:
        axes.axvspan(begin, end, color=BAND, alpha=0.3, linewidth=0, label="95% interval")
    axes.set_xlim(low, high)
