"""Pictures of a study: effects with every seed as a dot, loss curves with seed bands, evidence over time."""

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from fromscratch.runs.charts import ACCENT, BAND, DOTS_PER_INCH, INK, WARNING
from fromscratch.studies.definition import CONTROL
from fromscratch.studies.jobs import StudyFolder, held_out_by_share, is_lost
from fromscratch.studies.results import Judgement, arm_jobs, judge, losses_after, mean_curve
from fromscratch.studies.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {Verdict.BETTER: "#548235", Verdict.WORSE: WARNING, Verdict.NO_EFFECT: INK}
UNDECIDED = "#7f7f7f"
MAX_EVIDENCE = 1e6


def forest_plot(judgement: Judgement) -> bytes:
    """Draws the effect of each arm with its interval, and each run's difference to the baseline (PNG).

    A run is compared with the baseline's run of the same seed where the verdict compares pairs, else with their mean.
    """
    arms, base = judgement.result.arms, judgement.result.control.losses
    mean = math.fsum(base.values()) / len(base) if base else 0.0
    dots = [
        [loss - (base.get(seed, mean) if arm.paired else mean) for seed, loss in arm.runs.losses.items()]
        for arm in arms
    ]

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
    base = dict(mean_curve(_curves(folder, CONTROL)))

    def draw(axes: "Axes") -> None:
        late = [0.0]
        axes.axhline(0, color=INK, linewidth=0.8)
        for place, arm in enumerate(folder.study.all_arms):
            curves = _curves(folder, arm.name)
            points = [(share, loss) for share, loss in mean_curve(curves) if share in base and share > 0]
            if not points:
                if lost := _lost_of(folder, arm.name):
                    axes.plot([], [], label=arm.name + lost)
                continue
            shares = [share for share, _ in points]
            colour, style = _look(place)
            low = [min(curve[share] for curve in curves) - base[share] for share in shares]
            high = [max(curve[share] for curve in curves) - base[share] for share in shares]
            axes.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(
                shares,
                [loss - base[share] for share, loss in points],
                style,
                color=colour,
                label=arm.name + _lost_of(folder, arm.name),
            )
            late += [value for share, *pair in zip(shares, low, high, strict=True) for value in pair if share >= 0.25]
        axes.set_ylim(min(late) * 1.1 - 0.001, max(late) * 1.1 + 0.001)
        axes.set_xlabel("share of the training")
        axes.set_ylabel("held-out loss minus the baseline's, nats")
        axes.legend(fontsize=7, ncols=2, frameon=False)

    return _figure(draw, rows=12)


def _curves(folder: StudyFolder, arm: str) -> list[dict[float, float]]:
    """Of the runs that count as a number: those that diverged or were stopped are left out."""
    stopped = folder.stopped_early()
    jobs = [job for job in arm_jobs(folder, arm) if not is_lost(job, stopped)]
    return [curve for job in jobs if (curve := held_out_by_share(job.run))]


def _lost_of(folder: StudyFolder, arm: str) -> str:
    """How many runs of an arm diverged or were stopped, for the legend."""
    stopped = folder.stopped_early()
    count = sum(is_lost(job, stopped) for job in arm_jobs(folder, arm))
    return f" ({count} diverged or stopped)" if count else ""


def _look(place: int) -> tuple[str, str]:
    """Colour and line of an arm: twenty that can be told apart."""
    return (INK, "-") if place == 0 else (f"C{(place - 1) % 10}", "-" if place <= 10 else "--")


def evidence_over_time(folder: StudyFolder, judgement: Judgement) -> bytes:
    """Draws 1/p of each arm after each round of seeds (PNG): where it crosses 1/alpha, the arm is decided."""
    rounds = max(len(arm.seeds) for arm in folder.study.arms)
    looks = [
        judge(folder, losses_after(judgement.losses, n), borrowed=judgement.result.borrowed)
        for n in range(1, rounds + 1)
    ]

    def draw(axes: "Axes") -> None:
        alpha = folder.study.config.alpha
        axes.axhline(1 / alpha, color=ACCENT, linestyle="--", label=f"1 / alpha = {1 / alpha:.0f}")
        for place, arm in enumerate(folder.study.arms):
            found = [next(one for one in look.result.arms if one.arm == arm.name).evidence for look in looks]
            points = [
                (n, min(MAX_EVIDENCE, 1 / max(evidence.p_different, 1 / MAX_EVIDENCE)))
                for n, evidence in enumerate(found, start=1)
                if evidence is not None
            ]
            if points:
                colour, style = _look(place + 1)
                axes.plot(*zip(*points, strict=True), f"o{style}", color=colour, markersize=3, label=arm.name)
        axes.set_yscale("log")
        axes.set_xlabel("seeds of each arm")
        axes.set_ylabel("evidence that the arm differs, 1 / p")
        axes.set_xticks(range(1, rounds + 1))
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
