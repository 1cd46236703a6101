"""Correction for several comparisons."""

import numpy as np
from numpy.typing import ArrayLike

from fromscratch.studies.contrasts import Floats


def holm(p_values: ArrayLike) -> Floats:
    """Returns p-values adjusted by Holm's step-down (1979, "A simple sequentially rejective multiple test procedure").

    It holds whatever the dependence of the p-values, such as by the control that all arms share. It holds for the
    p-values 1 / E of e-processes at all looks at once: a false rejection needs some true null whose e-value exceeds
    (number of true nulls) / alpha, which by Ville's inequality ever happens with probability at most alpha in all.
    Averages of e-values would reject a little more, but e-processes of different comparisons have different
    filtrations, and their average need not be an e-process (Choe and Ramdas 2024, "Combining evidence across
    filtrations").
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    raised = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1.0), axis=-1)
    return adjusted
