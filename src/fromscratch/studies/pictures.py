"""Pictures of a study: effects with every seed as a dot, loss curves with seed bands, evidence over time."""

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from fromscratch.runs.charts import ACCENT, BAND, DOTS_PER_INCH, INK, WARNING
from fromscratch.studies.jobs import StudyFolder
from fromscratch.studies.results import Judgement, curves_by_arm, evidence_by_round
from fromscratch.studies.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {Verdict.BETTER: "#548235", Verdict.WORSE: WARNING, Verdict.NO_EFFECT: INK}
UNDECIDED = "#7f7f7f"


def forest_plot(judgement: Judgement) -> bytes:
    """Draws the effect of each arm with its interval, and each run's difference to the baseline (PNG)."""
    arms = judgement.result.arms
    dots = [judgement.differences(arm) for arm in arms]

    def draw(axes: "Axes") -> None:
        margin, measure = judgement.margin, judgement.result.measure
        axes.axvspan(-margin, margin, color=BAND, alpha=0.35, label=f"smaller than {measure.amount(margin)}")
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, arm in enumerate(arms):
            colour = COLOURS.get(arm.verdict, UNDECIDED)
            axes.plot(dots[row], [row] * len(dots[row]), "o", color=colour, alpha=0.45, markersize=4)
            if arm.effect is not None and arm.evidence is not None:
                low, high = arm.evidence.low, arm.evidence.high
                if math.isfinite(low) and math.isfinite(high):
                    axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
                axes.plot([arm.effect], [row], "D", color=colour, markersize=6)
        _mark_lost(axes, judgement, max((abs(dot) for row in dots for dot in row), default=0.0))
        axes.set_yticks(range(len(arms)), [arm.arm for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.9)  # the first arm on top, below the legend
        axes.set_xlabel(f"effect on the {measure.name}, {measure.scale} ({measure.better_side} of 0 is better)")
        axes.legend(loc="upper right", fontsize=8, frameon=False)

    return _figure(draw, rows=len(arms))


def _mark_lost(axes: "Axes", judgement: Judgement, largest: float) -> None:
    """Sets the range of the axis, and names right of it how many runs of an arm have no loss.

    The range is that of all runs (``largest``: of the differences), and three times that of the effects: one wide
    interval does not hide the others.
    """
    effects = [abs(arm.effect) for arm in judgement.result.arms if arm.effect is not None]
    reach = max(3 * max([judgement.margin, *effects]), 1.05 * largest)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -reach), min(high, reach))
    for row, arm in enumerate(judgement.result.arms):
        if arm.runs.diverged:
            text = f"{len(arm.runs.diverged)} diverged or stopped"
            axes.text(1.01, row, text, color=WARNING, fontsize=8, va="center", transform=axes.get_yaxis_transform())


def loss_curves(folder: StudyFolder) -> bytes:
    """Draws each arm's held-out loss minus the baseline's mean at the same share of the training (PNG).

    A band is the range of an arm's seeds. The axis shows the last three quarters: the first steps differ by much more.
    """
    curves = curves_by_arm(folder)

    def draw(axes: "Axes") -> None:
        late = [0.0]
        axes.axhline(0, color=INK, linewidth=0.8)
        for place, one in enumerate(curves):
            label = one.arm + (f" ({one.lost} diverged or stopped)" if one.lost else "")
            if not one.shares:
                if one.lost:
                    axes.plot([], [], label=label)
                continue
            colour, style = _look(place)
            axes.fill_between(one.shares, one.low, one.high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(one.shares, one.mean, style, color=colour, label=label)
            ends = zip(one.shares, one.low, one.high, strict=True)
            late += [value for share, *pair in ends for value in pair if share >= 0.25]
        axes.set_ylim(min(late) * 1.1 - 0.001, max(late) * 1.1 + 0.001)
        axes.set_xlabel("share of the training")
        axes.set_ylabel("held-out loss minus the baseline's, nats")
        axes.legend(fontsize=7, ncols=2, frameon=False)

    return _figure(draw, rows=12)


def _look(place: int) -> tuple[str, str]:
    """Colour and line of an arm: twenty that can be told apart."""
    return (INK, "-") if place == 0 else (f"C{(place - 1) % 10}", "-" if place <= 10 else "--")


def evidence_over_time(folder: StudyFolder, judgement: Judgement) -> bytes:
    """Draws 1/p of each arm after each round of seeds (PNG): where it crosses 1/alpha, the arm is decided."""
    evidence = evidence_by_round(folder, judgement)

    def draw(axes: "Axes") -> None:
        alpha = folder.study.config.alpha
        axes.axhline(1 / alpha, color=ACCENT, linestyle="--", label=f"1 / alpha = {1 / alpha:.0f}")
        for place, arm in enumerate(folder.study.arms):
            points = evidence[arm.name]
            if points:
                colour, style = _look(place + 1)
                axes.plot(*zip(*points, strict=True), f"o{style}", color=colour, markersize=3, label=arm.name)
        axes.set_yscale("log")
        axes.set_xlabel("seeds of each arm")
        axes.set_ylabel("evidence that the arm differs, 1 / p")
        axes.set_xticks(range(1, max(len(arm.seeds) for arm in folder.study.arms) + 1))
        axes.legend(fontsize=7, ncols=2, frameon=False)

    return _figure(draw, rows=12)


def _figure(draw: Callable[["Axes"], None], *, rows: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 1.6 + 0.3 * max(4, rows)), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
