"""Learning rates as pure functions of the step.

Every schedule first rises in a straight line for ``warmup_steps`` steps (step 0 takes the first
fraction, step ``warmup_steps`` is the first at the full rate). ``step`` counts from 0 and
``num_steps`` is the length of the run; the falling ones reach their minimum one step after the last,
so that no step is wasted at a rate of zero.
"""

import math


def constant(*, step: int, num_steps: int, learning_rate: float, warmup_steps: int) -> float:  # noqa: ARG001
    """The full rate after the warm-up."""
    return learning_rate * _warmup(step, warmup_steps)


def linear(*, step: int, num_steps: int, learning_rate: float, warmup_steps: int, min_learning_rate: float) -> float:
    """Straight from the full rate at the end of the warm-up to the minimum at the end of the run."""
    if step < warmup_steps:
        return learning_rate * _warmup(step, warmup_steps)
    remaining = 1.0 - _progress(step, warmup_steps, num_steps)
    return min_learning_rate + (learning_rate - min_learning_rate) * remaining


def warmup_cosine(
    *, step: int, num_steps: int, learning_rate: float, warmup_steps: int, min_learning_rate: float
) -> float:
    """Half a cosine from the full rate to the minimum (Loshchilov and Hutter 2017, equation 5)."""
    if step < warmup_steps:
        return learning_rate * _warmup(step, warmup_steps)
    height = 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup_steps, num_steps)))
    return min_learning_rate + (learning_rate - min_learning_rate) * height


def warmup_stable_decay(
    *,
    step: int,
    num_steps: int,
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    min_learning_rate: float,
) -> float:
    """Full rate until ``decay_steps`` before the end, then straight down (Hu et al. 2024, section 4)."""
    if step < warmup_steps:
        return learning_rate * _warmup(step, warmup_steps)
    remaining = 1.0 - _progress(step, num_steps - decay_steps, num_steps)
    return min_learning_rate + (learning_rate - min_learning_rate) * remaining


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / (warmup_steps + 1))


def _progress(step: int, begin: int, end: int) -> float:
    """How far a step lies between two others: 0 at ``begin`` and before, 1 at ``end`` and after."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
