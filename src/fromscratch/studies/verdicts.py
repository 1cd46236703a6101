"""Verdicts: what a study may say about each arm, and how sure it is.

An arm is better or worse than the control, has no effect larger than a margin, or is undecided; or the runs permit no
verdict, and it is unknown.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from fromscratch.errors import UsageError
from fromscratch.studies.comparisons import Comparison, Runs, compare
from fromscratch.studies.contrasts import Contrast, Design
from fromscratch.studies.corrections import holm
from fromscratch.studies.effects import shrink
from fromscratch.studies.evalues import Sequential
from fromscratch.studies.fixed import Fixed, dunnett, welch
from fromscratch.studies.measures import LOSS, Measure
from fromscratch.studies.noise import Spread, disagreement, spread_within_arms, spread_within_seeds

MAX_FURTHER_SEEDS = 1_000
MIN_AGREEMENT = 0.01
"""P-value of an F test below which a borrowed spread is said to disagree with the study's own."""


class Verdict(StrEnum):
    """What is said about an arm."""

    BETTER = "better"
    WORSE = "worse"
    NO_EFFECT = "no effect larger than the margin"
    UNDECIDED = "undecided"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Evidence:
    """About one arm, corrected for the number of arms."""

    p_different: float
    """P-value of the hypothesis that there is no effect; in the sequential design, valid at every look."""
    p_equivalent: float
    """P-value of the hypothesis that the effect is as large as the margin, or larger."""
    low: float
    high: float
    """Ends of the interval of the effect, in its unit. The intervals of all arms hold together at the study's level.
    Infinite where the runs are too few for an interval."""

    @property
    def interval(self) -> str:
        """The interval in words."""
        ends = (self.low, self.high)
        return "{:+.4f} to {:+.4f}".format(*ends) if all(map(math.isfinite, ends)) else "no interval yet"


@dataclass(frozen=True)
class ArmResult:
    """The verdict about one arm. Effects are arm minus control, in the unit of the measure."""

    arm: str
    verdict: Verdict
    reason: str
    """Why, in one sentence."""
    runs: Runs
    paired: bool
    """Whether runs were compared by seed."""
    spread: Spread | None
    """What the effect was measured against."""
    effect: float | None = None
    evidence: Evidence | None = None
    shrunken: float | None = None
    """The effect moved towards 0 by what chance explains among the study's arms (``effects.shrink``)."""
    seeds_to_decide: int | None = None
    """For *undecided*: how many further seeds of arm and control decide it if estimate and spread stay what they are.
    A fixed design permits no further look; there, they are the seeds to add in a new study. None beyond 1,000."""

    @property
    def is_decided(self) -> bool:
        """Whether further seeds are not needed for a verdict."""
        return self.verdict in (Verdict.BETTER, Verdict.WORSE, Verdict.NO_EFFECT)


@dataclass(frozen=True)
class StudyResult:
    """Verdicts of a study."""

    arms: tuple[ArmResult, ...]
    control: Runs
    design: Literal["sequential", "fixed"]
    correction: Literal["Holm", "Dunnett"]
    borrowed: Spread | None
    warnings: tuple[str, ...]
    measure: Measure = LOSS
    """What the runs were compared by; says whether effects above or below 0 are better."""


def judge_study(
    losses: Mapping[str, Mapping[int, float | None]],
    control: str,
    *,
    margin: float,
    design: Literal["sequential", "fixed"] = "sequential",
    alpha: float = 0.05,
    borrowed: Spread | None = None,
    measure: Measure = LOSS,
) -> StudyResult:
    """Compares every arm with the control.

    Args:
        losses: Final value of the measure, such as the held-out loss, of every declared run by arm and seed. None is
            a run that has not ended; NaN or infinity is one that diverged.
        control: Name of the control arm.
        margin: The smallest effect of interest, in the unit of the measure.
        design: ``sequential`` holds at any number of looks; ``fixed`` once, when all declared runs have ended.
        alpha: Rate of studies that falsely call an arm different; and of those that falsely call one equivalent.
        borrowed: The registry's spread for this setting. A spread of single runs compares arms by all their runs; a
            spread of pairs compares them by seed. Without one, arms whose seeds the control has all are compared by
            seed.
        measure: What the losses are; its direction decides which arms are better.

    Raises UsageError for a study without control or arms, and for a margin or alpha out of range.
    """
    _check(losses, control, margin, alpha)
    plan = _Plan(design, margin, alpha, len(losses) - 1, measure)
    comparisons = compare(losses, control, borrowed, pools_arms=design == "sequential" or borrowed is not None)
    missing = sum(loss is None for by_seed in losses.values() for loss in by_seed.values())
    waits = f"{missing} declared runs are missing; a fixed design is judged once, when all have ended"
    reasons = {one.arm: waits if design == "fixed" and missing else one.why_unknown for one in comparisons}
    judged = [one for one in comparisons if reasons[one.arm] is None]
    evidence, correction = _weigh(judged, plan, borrowed)
    shrunken = shrink([one.contrast.estimate for one in judged], [one.contrast.standard_error for one in judged])
    known = {
        one.arm: _judge(one, found, float(value), plan)
        for one, found, value in zip(judged, evidence, shrunken, strict=True)
    }
    arms = [
        known.get(one.arm)
        or ArmResult(one.arm, Verdict.UNKNOWN, str(reasons[one.arm]), one.runs, one.paired, one.spread)
        for one in comparisons
    ]
    base = comparisons[0].control
    warnings = tuple(_warnings(losses, base, borrowed, measure))
    return StudyResult(tuple(arms), base, design, correction, borrowed, warnings, measure)


@dataclass(frozen=True)
class _Plan:
    design: Literal["sequential", "fixed"]
    margin: float
    alpha: float
    num_arms: int
    measure: Measure

    @property
    def rule(self) -> Design:
        return Sequential() if self.design == "sequential" else Fixed()


def _check(losses: Mapping[str, Mapping[int, float | None]], control: str, margin: float, alpha: float) -> None:
    """Raises UsageError."""
    if control not in losses or len(losses) < 2:
        raise UsageError(f"arms {', '.join(losses) or 'none'}: a study needs the control '{control}' and another arm")
    if not (0 < margin < math.inf):
        raise UsageError(f"smallest effect of interest {margin}: must be a number above 0")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha {alpha}: must be above 0 and below 0.5")


def _weigh(
    judged: list[Comparison], plan: _Plan, borrowed: Spread | None
) -> tuple[list[Evidence], Literal["Holm", "Dunnett"]]:
    is_textbook = plan.design == "fixed" and borrowed is None
    if is_textbook and len(judged) > 1 and not any(one.paired for one in judged):
        arms = [list(one.runs.losses.values()) for one in judged]
        control = list(judged[0].control.losses.values())
        return [Evidence(*row.tolist()) for row in dunnett(control, arms, plan.margin, plan.alpha)], "Dunnett"
    contrasts = [
        welch(one.control.sample, one.runs.sample) if is_textbook and not one.paired else one.contrast for one in judged
    ]
    return _holm(contrasts, plan), "Holm"


def _holm(contrasts: list[Contrast], plan: _Plan) -> list[Evidence]:
    """Arms without a verdict count in the correction: they may get one at a later look."""
    pending = [1.0] * (plan.num_arms - len(contrasts))
    different = holm([float(plan.rule.p_different(one)) for one in contrasts] + pending)
    equivalent = holm([float(plan.rule.p_equivalent(one, plan.margin)) for one in contrasts] + pending)
    evidence = []
    for contrast, p_different, p_equivalent in zip(contrasts, different, equivalent, strict=False):
        effect, radius = float(contrast.estimate), float(plan.rule.radius(contrast, plan.alpha / plan.num_arms))
        low, high = effect - radius, effect + radius
        if p_different <= plan.alpha:
            # Holm rejects more than Bonferroni's interval. The intersection of both holds at the same level:
            # Strassburger and Bretz 2008, "Compatible simultaneous lower confidence bounds for the Holm procedure".
            low, high = (max(low, 0.0), high) if effect > 0 else (low, min(high, 0.0))
        evidence.append(Evidence(float(p_different), float(p_equivalent), low, high))
    return evidence


def _judge(one: Comparison, evidence: Evidence, shrunken: float, plan: _Plan) -> ArmResult:
    effect, measure = float(one.contrast.estimate), plan.measure
    numbers, margin = f"{measure.effect(effect)} ({evidence.interval})", measure.amount(plan.margin)
    if evidence.p_different <= plan.alpha:
        verdict = Verdict.BETTER if measure.is_improvement(effect) else Verdict.WORSE
        small = max(abs(evidence.low), abs(evidence.high)) < plan.margin
        reason = f"the {measure.name} changes by {numbers}"
        reason += ", which is less than the smallest effect of interest" * small
    elif evidence.p_equivalent <= plan.alpha:
        verdict, reason = Verdict.NO_EFFECT, f"the effect, {numbers}, is smaller than {margin}"
    else:
        verdict, reason = Verdict.UNDECIDED, f"the effect, {numbers}, may be none, and may be {margin}"
    if problem := _divergence(one, verdict):
        verdict, reason = Verdict.UNKNOWN, f"{problem}; of the others, {reason}"
    seeds = _seeds_to_decide(one, plan) if verdict == Verdict.UNDECIDED else None
    return ArmResult(one.arm, verdict, reason, one.runs, one.paired, one.spread, effect, evidence, shrunken, seeds)


def _divergence(one: Comparison, verdict: Verdict) -> str | None:
    """Why diverged runs forbid a verdict. They count against their arm: the rest of it looks better than it is."""
    problems = []
    for name, runs, allowed in ((one.arm, one.runs, Verdict.WORSE), ("the control", one.control, Verdict.BETTER)):
        if runs.diverged and verdict != allowed:
            problems.append(f"{len(runs.diverged)} of {len(runs.seeds)} runs of {name} diverged")
    return " and ".join(problems) or None


def _seeds_to_decide(one: Comparison, plan: _Plan) -> int | None:
    further = np.arange(1.0, MAX_FURTHER_SEEDS + 1)
    contrast, alpha = one.with_more(further), plan.alpha / plan.num_arms
    p = np.minimum(plan.rule.p_different(contrast), plan.rule.p_equivalent(contrast, plan.margin))
    return int(further[np.argmax(p <= alpha)]) if (p <= alpha).any() else None


def _warnings(
    losses: Mapping[str, Mapping[int, float | None]], control: Runs, borrowed: Spread | None, measure: Measure
) -> Iterator[str]:
    if control.diverged:
        yield f"{len(control.diverged)} of {len(control.seeds)} runs of the control diverged"
    if borrowed is None:
        return
    finite = {arm: Runs.of(by_seed).losses for arm, by_seed in losses.items()}
    own = (spread_within_seeds if borrowed.paired else spread_within_arms)(finite)
    if own is not None and (p := disagreement(own, borrowed)) < MIN_AGREEMENT:
        yield (
            f"the borrowed spread is {measure.amount(borrowed.standard_deviation, 5)}, this study's own is "
            f"{own.standard_deviation:.5f} (F test, p = {p:.2g}): check that the registry's entry is for this model, "
            "data and schedule, or judge without it"
        )
