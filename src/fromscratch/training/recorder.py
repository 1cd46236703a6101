"""Turns step results into records, a step late, so that the device is never waited for."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from fromscratch.formats.checkpoints import TrainingState
from fromscratch.training.gradients import Outcome
from fromscratch.training.nonfinite import NonfinitePolicy
from fromscratch.training.spikes import Off as SpikePolicy
from fromscratch.training.spikes import Warn
from fromscratch.training.step import StepResult

LEAST_LOSS_SCALE = 1.0  # below it, overflows are no longer the scale's fault


class StepRecorder:
    """Fetches each step's numbers when the next step is already queued, and passes them on in order."""

    def __init__(
        self,
        state: TrainingState,
        policy: NonfinitePolicy,
        spikes: SpikePolicy | Warn,
        *,
        tokens_per_step: int,
        on_record: Callable[[dict[str, Any]], None],
        announce: Callable[..., None],
    ) -> None:
        self._state = state
        self._policy = policy
        self._spikes = spikes
        self._tokens_per_step = tokens_per_step
        self._on_record = on_record
        self._announce = announce
        self._pending: tuple[int, float, torch.Tensor, torch.cuda.Event | None] | None = None
        self._clock = time.perf_counter()
        self.spike_step: int | None = None
        """The step of a spike that was found and not yet dealt with."""

    def start_clock(self) -> None:
        """Steps are timed from here, not from the end of an evaluation or a save before it."""
        self._clock = time.perf_counter()

    def add(self, step: int, learning_rate: float, result: StepResult, *, loss_scale: torch.Tensor | float) -> None:
        """Queues the result of step number ``step`` (the first is 1) and passes on the one before."""
        fields = (
            result.loss,
            result.loss_min,
            result.loss_max,
            result.grad_norm,
            result.clipped,
            result.outcome,
            result.spike,
            loss_scale if isinstance(loss_scale, torch.Tensor) else torch.full_like(result.loss, loss_scale),
        )
        numbers, arrived = torch.stack([value.float() for value in fields]), None
        if numbers.is_cuda:  # fetched behind this step and before the next, whose end a later fetch would wait for
            numbers, arrived = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        previous, self._pending = self._pending, (step, learning_rate, numbers, arrived)
        if previous is not None:
            self._pass_on(*previous)

    def flush(self) -> None:
        """Passes on what is queued. Raises DivergedError where the policy says the run is over."""
        previous, self._pending = self._pending, None
        if previous is not None:
            self._pass_on(*previous)

    def forget(self) -> None:
        """Drops what is queued: the run has gone back behind it."""
        self._pending, self.spike_step = None, None

    def _pass_on(
        self, step: int, learning_rate: float, numbers: torch.Tensor, arrived: torch.cuda.Event | None
    ) -> None:
        if arrived is not None:
            arrived.synchronize()
        loss, loss_min, loss_max, grad_norm, clipped, code, held, loss_scale = numbers.tolist()
        outcome = Outcome(int(code))
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._state.seconds += seconds
        bad = outcome >= Outcome.INFINITE_NORM
        spike = bool(held) or (not bad and self._spikes.is_spike(loss, self._state.recent_losses))
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
                "nonfinite": bad,
                "outcome": "spike" if spike else outcome.label,
                "tokens_per_second": self._tokens_per_step / seconds,
                "seconds": seconds,
            }
        )
        self._count(outcome, loss, loss_scale, spike=spike)
        if bad:
            self._announce("nonfinite", step=step, outcome=outcome.label, in_a_row=self._state.nonfinite_in_a_row)
        if spike:
            self._announce("spike", step=step, loss=loss)
            self.spike_step = step
        self._policy.check(step=step, in_a_row=self._state.nonfinite_in_a_row)

    def _count(self, outcome: Outcome, loss: float, loss_scale: float, *, spike: bool) -> None:
        state = self._state
        if outcome < Outcome.INFINITE_NORM:
            state.nonfinite_in_a_row = 0
        elif outcome != Outcome.SCALE_OVERFLOW or loss_scale < LEAST_LOSS_SCALE:
            state.nonfinite_in_a_row += 1
        if outcome < Outcome.INFINITE_NORM and math.isfinite(loss) and not spike:
            state.loss_sum += loss
            state.loss_count += 1
            self._spikes.remember(loss, state.recent_losses)


def _known(value: float) -> float | None:
    """The number, or None where it is not finite: records are strict JSON."""
    return value if math.isfinite(value) else None
