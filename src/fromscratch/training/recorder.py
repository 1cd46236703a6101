"""Turns step results into records, a step late, so that the device is never waited for."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from fromscratch.training.checkpoints import TrainingState
from fromscratch.training.gradients import NonfinitePolicy
from fromscratch.training.step import StepResult


class StepRecorder:
    """Fetches each step's numbers when the next step is already queued, and passes them on in order."""

    def __init__(
        self,
        state: TrainingState,
        policy: NonfinitePolicy,
        *,
        tokens_per_step: int,
        on_record: Callable[[dict[str, Any]], None],
        announce: Callable[..., None],
    ) -> None:
        self._state = state
        self._policy = policy
        self._tokens_per_step = tokens_per_step
        self._on_record = on_record
        self._announce = announce
        self._pending: tuple[int, float, torch.Tensor] | None = None
        self._clock = time.perf_counter()

    def start_clock(self) -> None:
        """Steps are timed from here, not from the end of an evaluation or a save before it."""
        self._clock = time.perf_counter()

    def add(self, step: int, learning_rate: float, result: StepResult) -> None:
        """Queues the result of step number ``step`` (the first is 1) and passes on the one before."""
        numbers = torch.stack(
            [
                result.loss.float(),
                result.loss_min.float(),
                result.loss_max.float(),
                result.grad_norm.float(),
                result.clipped.float(),
                result.nonfinite.float(),
            ]
        )
        previous, self._pending = self._pending, (step, learning_rate, numbers)
        if previous is not None:
            self._pass_on(*previous)

    def flush(self) -> None:
        """Passes on what is queued. Raises DivergedError where the policy says the run is over."""
        previous, self._pending = self._pending, None
        if previous is not None:
            self._pass_on(*previous)

    def _pass_on(self, step: int, learning_rate: float, numbers: torch.Tensor) -> None:
        loss, loss_min, loss_max, grad_norm, clipped, nonfinite = numbers.tolist()
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._state.seconds += seconds
        self._count(loss, bad=bool(nonfinite))
        self._on_record(
            {
                "step": step,
                "tokens": step * self._tokens_per_step,
                "loss": _known(loss),
                "loss_min": _known(loss_min),
                "loss_max": _known(loss_max),
                "learning_rate": learning_rate,
                "grad_norm": _known(grad_norm),
                "clipped": bool(clipped),
                "nonfinite": bool(nonfinite),
                "tokens_per_second": self._tokens_per_step / seconds,
                "seconds": seconds,
            }
        )
        if nonfinite:
            self._announce("nonfinite", step=step, in_a_row=self._state.nonfinite_in_a_row)
        self._policy.check(step=step, in_a_row=self._state.nonfinite_in_a_row)

    def _count(self, loss: float, *, bad: bool) -> None:
        self._state.nonfinite_in_a_row = self._state.nonfinite_in_a_row + 1 if bad else 0
        if math.isfinite(loss) and not bad:
            self._state.loss_sum += loss
            self._state.loss_count += 1


def _known(value: float) -> float | None:
    """The number, or None where it is not finite: records are strict JSON."""
    return value if math.isfinite(value) else None
