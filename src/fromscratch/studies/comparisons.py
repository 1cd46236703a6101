"""From final losses by arm and seed to a contrast per arm: which runs count, in pairs or not, and which spread."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fromscratch.studies.contrasts import Contrast, Floats, Sample, compare_arms, compare_pairs, harmonic
from fromscratch.studies.noise import ROUNDING, Spread, pool, spread_within_arms, spread_within_seeds


@dataclass(frozen=True)
class Runs:
    """The declared runs of one arm."""

    losses: Mapping[int, float]
    """Final value of the study's measure by seed, finite; by default the held-out loss in nats."""
    diverged: tuple[int, ...]
    """Seeds of runs whose loss is NaN or infinite; they enter no mean and no spread."""
    missing: tuple[int, ...]
    """Seeds of runs that have not ended."""

    @classmethod
    def of(cls, by_seed: Mapping[int, float | None]) -> Self:
        """Sorts the runs of one arm: None is missing, NaN and infinity are diverged."""
        ended = {seed: float(loss) for seed, loss in by_seed.items() if loss is not None}
        return cls(
            {seed: loss for seed, loss in ended.items() if math.isfinite(loss)},
            tuple(seed for seed, loss in ended.items() if not math.isfinite(loss)),
            tuple(seed for seed, loss in by_seed.items() if loss is None),
        )

    @property
    def seeds(self) -> frozenset[int]:
        """All declared seeds."""
        return frozenset({*self.losses, *self.diverged, *self.missing})

    @property
    def sample(self) -> Sample:
        """Summary of the finite losses."""
        return Sample.of(list(self.losses.values()))


@dataclass(frozen=True)
class Comparison:
    """An arm and the control."""

    arm: str
    runs: Runs
    control: Runs
    paired: bool
    borrowed: Spread | None
    """The registry's spread."""
    contrast: Contrast
    """With the spread pooled over what may be pooled."""

    @property
    def spread(self) -> Spread | None:
        """What the effect is measured against; None without degrees of freedom, or where no two losses differ."""
        variance, df = float(self.contrast.variance), float(self.contrast.df)
        return Spread(variance, df, self.paired) if df > 0 and variance > ROUNDING**2 else None

    @property
    def why_unknown(self) -> str | None:
        """Why these runs permit no verdict, in one sentence; None where they do."""
        for name, runs in ((self.arm, self.runs), ("the control", self.control)):
            if not runs.losses:
                return (
                    f"{name} has no finite result: {len(runs.diverged)} runs diverged, {len(runs.missing)} are missing"
                )
        if self.contrast.information == 0:
            return f"{self.arm} and the control have no seed in common with finite results; run more seeds of both"
        if self.borrowed is None and (len(self.runs.losses) < 2 or len(self.control.losses) < 2):
            return "one seed, and no spread in the registry of noise: chance cannot be told from an effect; add seeds"
        if self.spread is None:
            return "no two seeds differ: the spread is unknown; check that seeds change runs, or add seeds"
        return None

    def with_more(self, seeds: Floats) -> Contrast:
        """Returns the contrast after ``seeds`` further seeds of both arms, if estimate and variance stay the same."""
        now = self.contrast
        if self.paired:
            return Contrast(now.estimate, now.information + seeds / 2, now.variance, now.df + seeds)
        information = harmonic(len(self.runs.losses) + seeds, len(self.control.losses) + seeds)
        return Contrast(now.estimate, information, now.variance, now.df + 2 * seeds)


def compare(
    losses: Mapping[str, Mapping[int, float | None]], control: str, borrowed: Spread | None, *, pools_arms: bool
) -> list[Comparison]:
    """Compares every arm with the control; see ``verdicts.judge_study``.

    Args:
        losses: By arm and seed; None is missing, NaN or infinity is diverged.
        control: Name of the control arm.
        borrowed: The registry's spread; decides whether arms are compared by seed.
        pools_arms: Whether the spread within the other arms is pooled with that of the two that are compared.
    """
    runs = {arm: Runs.of(by_seed) for arm, by_seed in losses.items()}
    base = runs.pop(control)
    comparisons = []
    for arm, own in runs.items():
        others = {other: them.losses for other, them in runs.items() if other != arm} if pools_arms else {}
        # Decided by what was declared before the first run, never by losses: choosing the better of two tests is
        # a way of looking twice.
        paired = borrowed.paired if borrowed else own.seeds <= base.seeds
        spread = pool([borrowed, (spread_within_seeds if paired else spread_within_arms)(others)])
        if paired:
            both = [seed for seed in own.losses if seed in base.losses]
            contrast = compare_pairs(Sample.of([own.losses[seed] - base.losses[seed] for seed in both]), spread)
        else:
            contrast = compare_arms(base.sample, own.sample, spread)
        comparisons.append(Comparison(arm, own, base, paired, borrowed, contrast))
    return comparisons
