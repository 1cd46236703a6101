"""The bootstrap of a loss: how much it would change with other text of the same kind."""

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 2_000


def bootstrap_losses(sums: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns ``sum(sums) / sum(weights)`` of 2,000 resamples: [2000].

    Items (sequences or documents) are resampled with replacement. The generator has a fixed seed, so the same items
    give the same result. Source: Efron and Tibshirani 1993, chapter 13.
    """
    generator = np.random.default_rng(0)
    losses = np.empty(BOOTSTRAP_SAMPLES)
    for index in range(BOOTSTRAP_SAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        losses[index] = sums[drawn].sum() / weights[drawn].sum()
    return losses


def bootstrap_interval(
    sums: NDArray[np.float64], weights: NDArray[np.int64]
) -> tuple[float, float] | tuple[None, None]:
    """Returns the 95% percentile interval of ``sum(sums) / sum(weights)``; fewer than two items have none."""
    if len(sums) < 2:
        return None, None
    low, high = np.quantile(bootstrap_losses(sums, weights), [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


def bootstrap_counts(num_items: int) -> NDArray[np.int64]:
    """Returns how often each item occurs in each of 2,000 resamples: [2000, items]. The same every time.

    One resample for several figures keeps them paired.
    """
    generator = np.random.default_rng(0)
    return generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=BOOTSTRAP_SAMPLES)
