"""Learning-rate schedules: pure functions from the step to a factor on every parameter group's own rate.

Every schedule first rises in a straight line for ``warmup_steps`` steps: step 0 takes the first fraction,
step ``warmup_steps`` is the first at factor 1. ``step`` counts from 0 and ``num_steps`` is the length of
the run. Decaying schedules reach their minimum one step after the last one, so that no step is wasted at
a rate of zero. ``min_factor`` is that minimum as a share of the full rate.
"""

import math


def constant(*, step: int, num_steps: int, warmup_steps: int) -> float:  # noqa: ARG001
    """1 after the warm-up."""
    return _warmup(step, warmup_steps)


def linear(*, step: int, num_steps: int, warmup_steps: int, min_factor: float) -> float:
    """A straight line from 1 at the end of the warm-up to the minimum at the end of the run."""
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return _between(min_factor, 1.0 - _progress(step, warmup_steps, num_steps))


def warmup_cosine(*, step: int, num_steps: int, warmup_steps: int, min_factor: float) -> float:
    """Half a cosine from 1 to the minimum (Loshchilov and Hutter 2017, equation 5)."""
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return _between(min_factor, 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup_steps, num_steps))))


def warmup_stable_decay(*, step: int, num_steps: int, warmup_steps: int, decay_steps: int, min_factor: float) -> float:
    """1 until ``decay_steps`` before the end, then a straight line down (Hu et al. 2024, section 4)."""
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return _between(min_factor, 1.0 - _progress(step, num_steps - decay_steps, num_steps))


def inverse_square_root(*, step: int, num_steps: int, warmup_steps: int) -> float:  # noqa: ARG001
    """sqrt(warmup_steps / step) after the warm-up, whatever the length of the run (Vaswani et al. 2017, equation 3)."""
    return _warmup(step, warmup_steps) if step < warmup_steps else math.sqrt(warmup_steps / step)


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / (warmup_steps + 1))


def _between(minimum: float, share: float) -> float:
    """The minimum at share 0, 1 at share 1."""
    return minimum + (1.0 - minimum) * share


def _progress(step: int, begin: int, end: int) -> float:
    """Share of the way from ``begin`` (0, also before it) to ``end`` (1, also after it)."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
