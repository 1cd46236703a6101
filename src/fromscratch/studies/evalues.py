"""The sequential design: e-processes and confidence sequences, valid however often one looks.

One formula covers pairs and separate arms, equal and unequal numbers of runs, and a spread that is unknown, borrowed
with some degrees of freedom, or known. The alternative says that the effect, in units of the spread, is normal with
mean 0 and standard deviation ``EFFECT_SCALE``. With estimate d, information w, f degrees of freedom, variance s^2,
g = w EFFECT_SCALE^2 and t^2 = w d^2 / s^2::

    E = (1 + g)^(-1/2) * ((f + t^2) / (f + t^2 / (1 + g)))^((f + 1) / 2)

This is the ratio of two densities of the maximal invariant under shifts of each arm (and of each seed, for pairs) and
a common change of scale. The invariant of the first n runs is a function of that of the first n + 1, so the ratio is a
martingale of mean 1 under every mean and variance of the null hypothesis. By Ville's inequality (1939), it ever
exceeds 1 / alpha with probability at most alpha.

* Unknown spread: Lai 1976, "On confidence sequences", for the scale group; Wang and Ramdas 2024, "Anytime-valid
  t-tests and confidence sequences for Gaussian means with unknown variance", theorem 4.9, is the same formula for one
  arm. Perez-Ortiz, Lardy, de Heide and Grunwald 2024, "E-statistics, group invariance and anytime-valid testing", show
  it for groups in general, and Lindon, Ham, Tingley and Bojinov 2022, "Anytime-valid linear models and regression
  adjusted causal inference in randomized experiments", for linear models with nuisance effects, such as means of arms.
* Borrowed spread: deviations of earlier runs from their arm's mean are observations of the same scale family with
  shifts of their own. They enter the same ratio: as squares and degrees of freedom, never as a known variance. So a
  spread borrowed with few degrees of freedom is exact too. The same holds for the other arms of the study.
* Known spread (f infinite): the limit is the two-sided normal mixture of Robbins 1970; Howard, Ramdas, McAuliffe and
  Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", proposition 5.

What it assumes: normal losses, one variance, and an order of the runs that does not depend on their losses beyond when
the study stops. Separate arms with the same seeds, whose losses correlate by rho > 0, are analysed as independent: the
true variance of the estimate is then smaller by the factor 1 - rho, and fewer verdicts are false.

The confidence sequence holds every effect that the e-process of that effect does not reject.
"""

import numpy as np

from fromscratch.studies.contrasts import Contrast, Floats

EFFECT_SCALE = 2.0
"""Standard deviation of the alternative's effect, in spreads of one run. Among 1, 1.5, 2, 3, 4 and 6, it needs the
fewest runs, or one more, for effects of two and three spreads, with and without a borrowed spread."""


def log_e_value(contrast: Contrast, effect: float = 0.0) -> Floats:
    """Returns the logarithm of the e-value against the hypothesis that the true effect is ``effect``, in nats.

    It is 0 where there is no evidence either way: without runs or degrees of freedom, or where no two losses differ.
    """
    gain, df = contrast.information * EFFECT_SCALE**2, contrast.df
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t2 = contrast.information * (contrast.estimate - effect) ** 2 / contrast.variance
        known = t2 / 2 * gain / (1 + gain)
        estimated = (df + 1) / 2 * np.log((df + t2) / (df + t2 / (1 + gain)))
        log_e = np.where(np.isinf(df), known, estimated) - np.log1p(gain) / 2
    return np.where((df > 0) & (contrast.information > 0) & (contrast.variance > 0), log_e, 0.0)


class Sequential:
    """P-values and intervals that hold at every look at once (a ``Design``)."""

    def p_different(self, contrast: Contrast) -> Floats:
        """Returns 1 / E, at most 1: under the null it ever falls to p or below with probability at most p."""
        return np.exp(-np.maximum(log_e_value(contrast), 0.0))

    def p_equivalent(self, contrast: Contrast, margin: float) -> Floats:
        """Returns the smallest alpha whose confidence sequence lies within ``margin`` of 0."""
        worst = np.minimum(log_e_value(contrast, margin), log_e_value(contrast, -margin))
        return np.where(np.abs(contrast.estimate) < margin, np.exp(-np.maximum(worst, 0.0)), 1.0)

    def radius(self, contrast: Contrast, alpha: float) -> Floats:
        """Returns half the width of the confidence sequence, from E = 1 / alpha solved for the effect."""
        gain, df = contrast.information * EFFECT_SCALE**2, contrast.df
        log_ratio = np.log(1 / alpha) + np.log1p(gain) / 2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            power = np.exp(2 / (df + 1) * log_ratio)
            estimated = np.where(power < 1 + gain, df * (power - 1) / (1 - power / (1 + gain)), np.inf)
            known = 2 * log_ratio * (1 + gain) / gain
            t2 = np.where(np.isinf(df), known, estimated)
            radius = np.sqrt(t2 * contrast.variance / contrast.information)
        return np.where((df > 0) & (contrast.information > 0) & (contrast.variance > 0), radius, np.inf)
