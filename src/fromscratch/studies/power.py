"""What a study can see: power, the smallest detectable effect, and the seeds that an effect needs.

Power counts findings of the right sign only.
"""

import math
from typing import Literal

import numpy as np
from scipy import optimize, stats

from fromscratch.errors import UsageError
from fromscratch.studies.contrasts import Contrast, Floats, Sample, compare_arms, compare_pairs, harmonic
from fromscratch.studies.evalues import Sequential
from fromscratch.studies.noise import Spread

REPETITIONS = 4_000
"""Simulated studies; the standard error of a power of 0.8 is 0.006."""


def control_seeds(num_arms: int, seeds: int) -> int:
    """Returns how many seeds the control gets: the square root of the number of arms times as many as an arm.

    It minimises the sum of the variances of the comparisons for a given number of runs. Source: Dunnett 1955.
    """
    return round(math.sqrt(num_arms) * seeds)


def simulate(
    effect: float,
    max_seeds: int,
    *,
    df: float = 0.0,
    paired: bool = False,
    control_ratio: float = 1.0,
    correlation: float = 0.0,
    repetitions: int = REPETITIONS,
    random_seed: int = 0,
) -> Contrast:
    """Simulates studies of one arm, looked at after every seed: contrasts [repetitions, max_seeds].

    Losses are normal with spread 1.

    Args:
        effect: True effect, in spreads.
        max_seeds: Seeds of the arm.
        df: Degrees of freedom of the borrowed spread, itself drawn anew in every study; 0 for none.
        paired: Whether runs are compared by seed.
        control_ratio: Runs of the control per run of the arm, at least 1.
        correlation: Of two runs with the same seed.
        repetitions: Number of studies.
        random_seed: Of the simulation.
    """
    generator = np.random.default_rng(random_seed)
    shape = repetitions, round(control_ratio * max_seeds)
    control = generator.standard_normal(shape)
    own = generator.standard_normal((repetitions, max_seeds))
    arm = correlation * control[:, :max_seeds] + math.sqrt(1 - correlation**2) * own + effect
    scale = 1 - correlation if paired else 1.0
    drawn = generator.chisquare(df, (repetitions, 1)) / df if 0 < df < math.inf else np.ones((repetitions, 1))
    # One spread per study: a Spread holds a number, so each study's losses are divided by its own borrowed spread
    # instead, which changes no p-value.
    unit = np.sqrt(scale * drawn) if df else np.ones((repetitions, 1))
    borrowed = Spread(1.0, df, paired) if df else None
    if paired:
        contrast = compare_pairs(Sample.running((arm - control[:, :max_seeds]) / unit), borrowed)
    else:
        counts = np.round(control_ratio * np.arange(1, max_seeds + 1)).astype(int)
        contrast = compare_arms(Sample.running(control / unit).at(counts - 1), Sample.running(arm / unit), borrowed)
    return Contrast(contrast.estimate * unit, contrast.information, contrast.variance * unit**2, contrast.df)


def power_by_seeds(
    effect: float,
    max_seeds: int,
    spread: Spread,
    *,
    design: Literal["sequential", "fixed"] = "sequential",
    alpha: float = 0.05,
    borrow: bool = True,
    control_ratio: float = 1.0,
) -> Floats:
    """Returns the probability of finding an effect with 1, 2, ..., max_seeds seeds of an arm: [max_seeds].

    Fixed: Student's noncentral t, one look at the end. Sequential: simulated, a look after every seed, found at any.

    Args:
        effect: True effect, in nats.
        max_seeds: Seeds of the arm.
        spread: What is known about the setting's spread.
        design: Of the study.
        alpha: Rate of false verdicts of this comparison; a study's alpha over the number of arms.
        borrow: Whether the study borrows the spread, or takes it for this forecast only.
        control_ratio: Runs of the control per run of the arm.
    """
    standardised, df = abs(effect) / spread.standard_deviation, spread.df if borrow else 0.0
    seeds = np.arange(1.0, max_seeds + 1)
    if design == "sequential":
        contrast = simulate(standardised, max_seeds, df=df, paired=spread.paired, control_ratio=control_ratio)
        found = (Sequential().p_different(contrast) <= alpha) & (contrast.estimate > 0)
        return np.maximum.accumulate(found, axis=-1).mean(axis=0)
    if spread.paired:
        information, own_df = seeds / 2, seeds - 1
    else:
        control = np.round(control_ratio * seeds)
        information, own_df = harmonic(seeds, control), seeds + control - 2
    return _power_of_t(standardised * np.sqrt(information), own_df + df, alpha)


def _power_of_t(noncentrality: Floats, df: Floats, alpha: float) -> Floats:
    with np.errstate(invalid="ignore"):
        critical = stats.t.isf(alpha / 2, df)
        known = stats.norm.sf(critical - noncentrality)
        power = np.where(np.isinf(df), known, stats.nct.sf(critical, df, noncentrality))
    return np.where(df > 0, power, 0.0)


def smallest_detectable_effect(
    seeds: int,
    spread: Spread,
    *,
    power: float = 0.8,
    design: Literal["sequential", "fixed"] = "sequential",
    alpha: float = 0.05,
    borrow: bool = True,
    control_ratio: float = 1.0,
) -> float | None:
    """Returns the effect, in nats, that so many seeds of an arm find with the given power.

    None where no effect below 100 spreads is found: too few degrees of freedom. The arguments are those of
    ``power_by_seeds``. Raises UsageError for fewer than one seed.
    """
    if seeds < 1:
        raise UsageError(f"{seeds} seeds: must be at least 1")

    def excess(effect: float) -> float:
        reached = power_by_seeds(
            effect, seeds, spread, design=design, alpha=alpha, borrow=borrow, control_ratio=control_ratio
        )
        return float(reached[-1]) - power

    largest = 100 * spread.standard_deviation
    if excess(largest) < 0:
        return None
    return float(optimize.brentq(excess, 0.0, largest, rtol=1e-4, xtol=largest * 1e-6))
