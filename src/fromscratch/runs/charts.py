"""Charts of a run, drawn from its records: loss, gradient norm, learning rate."""

import io
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fromscratch.errors import UsageError
from fromscratch.files import parent_problem, write_atomically
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_outcomes, read_records, read_thinned, to_float
from fromscratch.runs.states import Event, StepOutcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (8.0, 4.5)
DOTS_PER_INCH = 120
MAX_POINTS = 2_000
MAX_DRAWN = 1e100  # matplotlib's axes overflow above; no measurement is so large
MAX_STEP = 1e15
PNG_SIGNATURE, MAX_PNG_METADATA_BYTES = b"\x89PNG\r\n\x1a\n", 4_096
SOFTWARE, PROGRAM = "Software", "fromscratch"  # a text of the PNG file
INK, BAND, ACCENT, WARNING = "#1f4e79", "#9dc3e6", "#c55a11", "#c00000"
WEIGHTS = {"raw": ACCENT, "ema": "#548235", "tail": "#7030a0"}  # colours of held-out losses

OUTCOME_MARKS = {  # label, marker, height as a share of the axis, colour
    StepOutcome.NONFINITE: ("not finite", "x", 0.97, WARNING),
    StepOutcome.INFINITE_NORM: ("finite gradients, infinite norm", "^", 0.93, WARNING),
    StepOutcome.SCALE_OVERFLOW: ("overflow of the loss scale", "v", 0.89, "#7030a0"),
    StepOutcome.SPIKE: ("loss spike", "*", 0.85, "#548235"),
    StepOutcome.CLIPPED: ("clipped", "|", 0.02, ACCENT),
}

Series = list[tuple[float, float]]


def draw_charts(run: RunDirectory, *, clip_norm: float | None = None) -> list[Path]:
    """Writes ``charts/loss.png``, ``gradient-norm.png`` and ``learning-rate.png``; returns their paths."""
    metrics = read_thinned(run.metrics, MAX_POINTS)
    held_out, epochs = _held_out(run), dict(_of_evaluations(run, "epoch"))
    by_weights = {name: _of_evaluations(run, f"loss_{name}") for name in WEIGHTS}
    run.charts.mkdir(exist_ok=True)
    charts: dict[str, Callable[[Axes], None]] = {
        "loss": lambda axes: draw_loss(axes, metrics, held_out, by_weights, epochs),
        "gradient norm": lambda axes: draw_gradient_norm(axes, metrics, clip_norm, read_outcomes(run.metrics)),
        "learning rate": lambda axes: draw_learning_rate(axes, metrics),
    }
    return [_draw(run, name, draw) for name, draw in charts.items()]


def draw_loss(
    axes: "Axes",
    metrics: list[dict[str, Any]],
    held_out: Series,
    by_weights: Mapping[str, Series] = MappingProxyType({}),
    epochs: Mapping[float, float] = MappingProxyType({}),
) -> None:
    """Draws the training loss with the range of its micro-batches, the held-out loss and its minimum.

    Args:
        epochs: the epoch of each step with a held-out loss, in a run in epochs.
        by_weights: the held-out losses of the trained weights and of their averages, by name.
    """
    low, high = _points(metrics, "loss_min"), dict(_points(metrics, "loss_max"))
    band = [(step, lowest, high[step]) for step, lowest in low if step in high]
    if any(lowest != highest for _, lowest, highest in band):
        steps, lowest, highest = zip(*band, strict=True)
        label = "micro-batches, lowest to highest"
        axes.fill_between(steps, lowest, highest, color=BAND, alpha=0.6, linewidth=0, label=label)
    losses = _points(metrics, "loss")
    has_median = len(losses) > 100
    _plot(axes, losses, linewidth=0.8, alpha=0.35 if has_median else 1.0, label="training")
    if has_median:
        _plot(axes, running_median(losses), linewidth=1.6, label="training, running median")
    if held_out:
        # points without a line: nothing is known between them, and the loss does not fall in straight lines
        _mark_points(axes, held_out, marker="o", markersize=5, label="held out")
        for name, points in by_weights.items():
            if points and points != held_out:
                axes.plot(*_columns(points), color=WEIGHTS[name], marker=".", linestyle=":", label=f"held out, {name}")
        step, loss = min(held_out, key=lambda point: point[1])
        epoch = epochs.get(step)
        where = f"step {step:,.0f}" if epoch is None else f"step {step:,.0f}, epoch {epoch:.4g}"
        _mark_points(axes, [(step, loss)], marker="*", markersize=13, label=f"best: {loss:.3f} at {where}")
    _mark(axes, _nonfinite_steps(metrics, "loss"), StepOutcome.NONFINITE)
    axes.set_ylabel("loss (nats per token)")
    _limit_to_percentile(
        axes, [value for _, value in losses + held_out], [value for _, *pair in band for value in pair]
    )


def draw_comparison(path: Path, runs: Mapping[str, RunDirectory]) -> None:
    """Writes a chart of the losses of several runs, by label, over the tokens that they have trained on."""
    image = io.BytesIO()
    figure_of("loss", lambda axes: _draw_losses(axes, runs)).savefig(image, format="png")
    write_atomically(path, image.getvalue())


def _draw_losses(axes: "Axes", runs: Mapping[str, RunDirectory]) -> None:
    from numpy import interp

    for number, (label, run) in enumerate(runs.items()):
        metrics, colour = read_thinned(run.metrics, MAX_POINTS), f"C{number}"
        tokens_by_step = _columns([(0.0, 0.0), *_points(metrics, "tokens")])
        losses = _points(metrics, "loss")
        has_median = len(losses) > 100
        training = (running_median(losses), f"{label}, running median") if has_median else (losses, label)
        for (points, name), style in ((training, "-"), ((_held_out(run), f"{label}, held out"), "--")):
            if points:
                steps, values = _columns(points)
                axes.plot(
                    interp(steps, *tokens_by_step), values, color=colour, linestyle=style, linewidth=1.4, label=name
                )
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss (nats per token)")


def _held_out(run: RunDirectory) -> Series:
    """Returns the held-out losses by step."""
    return _of_evaluations(run, "loss")


def _of_evaluations(run: RunDirectory, key: str) -> Series:
    """Returns a value of the evaluations by step; of a step that was evaluated again, the last one."""
    evaluations = [record for record in read_records(run.events) if record.get("event") == Event.EVALUATION]
    return sorted(dict(_points(evaluations, key)).items())


def draw_gradient_norm(
    axes: "Axes",
    metrics: list[dict[str, Any]],
    clip_norm: float | None,
    outcomes: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draws the gradient norm before clipping, the clip line, and a mark at each step that was not normal.

    Args:
        outcomes: steps by outcome (``read_outcomes``); without it, only steps with a non-finite norm are marked.
    """
    norms = _points(metrics, "grad_norm")
    _plot(axes, norms, linewidth=0.8, label="before clipping")
    if norms and clip_norm is not None:
        axes.axhline(clip_norm, color=ACCENT, linestyle="--", linewidth=1.2, label=f"clipped above {clip_norm:g}")
    outcomes = outcomes or {StepOutcome.NONFINITE: _nonfinite_steps(metrics, "grad_norm")}
    for outcome in OUTCOME_MARKS:
        _mark(axes, outcomes.get(outcome, []), outcome)
    if any(value > 0 for _, value in norms):
        set_log_scale(axes)
    axes.set_ylabel("gradient norm")


def _mark(axes: "Axes", steps: Sequence[float], outcome: StepOutcome) -> None:
    """Draws a row of marks at the steps of one outcome; its label has the count."""
    steps = [step for step in steps if step < MAX_STEP]
    if steps:
        label, marker, height, colour = OUTCOME_MARKS[outcome]
        drawn = steps[:: max(1, len(steps) // MAX_POINTS)]
        text = f"{label}: {len(steps):,} {'step' if len(steps) == 1 else 'steps'}"
        transform = axes.get_xaxis_transform()
        axes.plot(drawn, [height] * len(drawn), marker, color=colour, transform=transform, label=text)


def draw_learning_rate(axes: "Axes", metrics: list[dict[str, Any]]) -> None:
    """Draws the learning rate of every step."""
    _plot(axes, _points(metrics, "learning_rate"), linewidth=1.6, label="learning rate")
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)


def running_median(points: Series) -> Series:
    """Computes a centred running median over 2% of the points on each side.

    The window shrinks near both ends. The first and the last points have no median, because a window of a few
    points would make it jump.
    """
    max_side = max(1, len(points) // 50)
    min_side = max_side // 3
    medians = []
    for index, (step, _) in enumerate(points[min_side : len(points) - min_side], min_side):
        side = min(max_side, index, len(points) - 1 - index)
        window = sorted(value for _, value in points[index - side : index + side + 1])
        medians.append((step, window[side]))
    return medians


def _plot(axes: "Axes", points: Series, *, linewidth: float, label: str, alpha: float = 1.0) -> None:
    """Draws a line; a dot if there is one point only."""
    if points:
        marker = "o" if len(points) == 1 else ""
        axes.plot(*_columns(points), color=INK, linewidth=linewidth, alpha=alpha, label=label, marker=marker)


def _mark_points(axes: "Axes", points: Series, *, marker: str, markersize: float, label: str) -> None:
    steps, values = _columns(points)
    (line,) = axes.plot(steps, values, color=ACCENT, linestyle="none", zorder=3, label=label)
    line.set(marker=marker, markersize=markersize, markeredgecolor="white", markeredgewidth=0.6)


def set_log_scale(axes: "Axes") -> None:
    """Makes the y axis logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(plain_number)
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain_number(value: float, _place: float = 0) -> str:
    """Formats a number of an axis as it is said: 0.6, 2,000; only beyond six places with an exponent, 1e-7."""
    if value == 0 or 1e-6 <= abs(value) < 1e6:
        return f"{Decimal(f'{value:.6g}'):,f}"
    mantissa, _, exponent = f"{value:g}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _draw(run: RunDirectory, name: str, draw: Callable[["Axes"], None]) -> Path:
    path = run.charts / f"{name.replace(' ', '-')}.png"
    write_picture(path, figure_of(f"{run.name}: {name}", draw))
    return path


def write_picture(path: Path, figure: "Figure") -> None:
    """Writes a figure as a PNG file that ``check_picture`` recognises. Replaces the file atomically."""
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={SOFTWARE: PROGRAM})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, image.getvalue())


def check_picture(path: Path, *, option: str = "--picture") -> Path:
    """Returns the real path of a picture that a command may write: a new file, or one that this package drew.

    Raises:
        UsageError: it is another file, or cannot be written.
    """
    try:
        found = path.expanduser().resolve()
        is_others = found.exists() and not _is_ours(found)
        problem = "exists already, and is no picture that this program drew" if is_others else parent_problem(found)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        problem = f"cannot be written ({error})"
    if problem:
        raise UsageError(f"{option} {path}: {problem}; name another file")
    return found


def _is_ours(path: Path) -> bool:
    """Whether a file is a PNG that names this package as its software."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(MAX_PNG_METADATA_BYTES)
    return begin.startswith(PNG_SIGNATURE) and f"tEXt{SOFTWARE}\0{PROGRAM}".encode() in begin


def figure_of(title: str, draw: Callable[["Axes"], None]) -> "Figure":
    """Creates a figure over the steps of a run, with a legend, or with a note if there are no points."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(plain_number)
    axes.grid(alpha=0.25)
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(len(line.get_xdata()) for line in axes.get_lines()):  # type: ignore[arg-type]
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "no steps recorded yet", transform=axes.transAxes, ha="center")
    return figure


def _nonfinite_steps(metrics: list[dict[str, Any]], key: str) -> list[float]:
    return [step for record in metrics if (step := _step(record)) is not None and record.get(key, 0) is None]


def _limit_to_percentile(axes: "Axes", values: list[float], band: list[float]) -> None:
    """Ends the axis a little above the 99.5th percentile if there are values far above: one spike flattens the rest."""
    if len(values) <= 50:
        return
    ordered = sorted(values + band)
    bottom, top, highest = ordered[0], ordered[int(0.995 * (len(ordered) - 1))], ordered[-1]
    if highest - bottom > 2 * (top - bottom) > 0:
        margin = 0.05 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def _points(records: list[dict[str, Any]], key: str) -> Series:
    pairs = ((_step(r), _drawable(r.get(key))) for r in records)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _columns(points: Series) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _step(record: dict[str, Any]) -> float | None:
    step = _drawable(record.get("step"))
    return step if step is not None and abs(step) < MAX_STEP else None


def _drawable(value: Any) -> float | None:
    number = to_float(value)
    return number if number is not None and abs(number) < MAX_DRAWN else None
