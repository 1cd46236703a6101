"""The fixed design: the number of seeds is declared, and the study is judged once, when all runs are done.

Pairs: paired t. Separate arms: Welch 1947 for two, Dunnett 1955 ("A multiple comparison procedure for comparing several
treatments with a control") for several. With a borrowed spread: t with the pooled degrees of freedom.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fromscratch.studies.contrasts import Contrast, Floats, Sample


class Fixed:
    """P-values and intervals of Student's t, valid for one look (a ``Design``)."""

    def p_different(self, contrast: Contrast) -> Floats:
        """Returns the two-sided p-value."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(contrast.estimate) / contrast.standard_error
        return np.nan_to_num(2 * stats.t.sf(t, contrast.df), nan=1.0)

    def p_equivalent(self, contrast: Contrast, margin: float) -> Floats:
        """Returns the larger p-value of two one-sided tests (Schuirmann 1987)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (margin - np.abs(contrast.estimate)) / contrast.standard_error
        return np.nan_to_num(stats.t.sf(t, contrast.df), nan=1.0)

    def radius(self, contrast: Contrast, alpha: float) -> Floats:
        """Returns half the width of the two-sided interval."""
        with np.errstate(divide="ignore", invalid="ignore"):
            radius = stats.t.isf(alpha / 2, contrast.df) * contrast.standard_error
        return np.nan_to_num(radius, nan=np.inf, posinf=np.inf)


def welch(control: Sample, arm: Sample) -> Contrast:
    """Compares two arms whose variances may differ; degrees of freedom by Welch and Satterthwaite."""
    parts = [sample.squares / (sample.number - 1) / sample.number for sample in (control, arm)]
    variance = parts[0] + parts[1]
    df = variance**2 / (parts[0] ** 2 / (control.number - 1) + parts[1] ** 2 / (arm.number - 1))
    return Contrast(arm.mean - control.mean, np.ones_like(variance), variance, df)


def dunnett(control: ArrayLike, arms: Sequence[ArrayLike], margin: float, alpha: float) -> Floats:
    """Compares each arm with the control by Dunnett's test; all arms have one variance. Corrected for their number.

    Returns one row per arm: p-value of no difference, p-value of no equivalence, ends of the simultaneous interval.

    Equivalence takes two one-sided tests, each of Dunnett's kind, on losses shifted by ``margin``.
    """
    values = [np.asarray(arm, dtype=np.float64) for arm in arms]
    # The multivariate t is integrated with random points: a fixed seed gives the same p-values every time.
    two_sided = stats.dunnett(*values, control=control, random_state=0)
    above = stats.dunnett(*(arm + margin for arm in values), control=control, alternative="greater", random_state=0)
    below = stats.dunnett(*(arm - margin for arm in values), control=control, alternative="less", random_state=0)
    interval = two_sided.confidence_interval(1 - alpha)
    equivalent = np.maximum(above.pvalue, below.pvalue)
    return np.stack([two_sided.pvalue, equivalent, interval.low, interval.high], axis=-1)
