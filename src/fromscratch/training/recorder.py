"""Turns step results into records, one step late, so that the host never waits for the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fromscratch.formats.checkpoints import TrainingState
from fromscratch.runs.states import Event
from fromscratch.training.gradients import Outcome
from fromscratch.training.journal import Journal
from fromscratch.training.nonfinite import NonfinitePolicy
from fromscratch.training.spikes import Off as SpikePolicy
from fromscratch.training.spikes import Warn
from fromscratch.training.step import StepResult

MIN_LOSS_SCALE = 1.0  # below this loss scale, an overflow counts as a non-finite step


@dataclass(frozen=True)
class _Pending:
    """A step whose numbers are not recorded yet."""

    step: int
    learning_rate: float
    names: list[str]
    """Auxiliary losses, the last of the numbers."""
    numbers: torch.Tensor
    arrived: torch.cuda.Event | None
    """On a CUDA device: when the numbers are in host memory."""
    done_at: float | None
    """When the step ended; None where the host learns that only by waiting for the device."""


class StepRecorder:
    """Reads each step's numbers when the next step is already queued, and passes them on in order."""

    def __init__(
        self,
        state: TrainingState,
        policy: NonfinitePolicy,
        spikes: SpikePolicy | Warn,
        journal: Journal,
        *,
        tokens_before: Callable[[int], int],
    ) -> None:
        self._state = state
        self._policy = policy
        self._spikes = spikes
        self._journal = journal
        self._tokens_before = tokens_before
        self._pending: _Pending | None = None
        self._clock = time.perf_counter()
        self.spike_step: int | None = None
        """The step of a spike that was found and not handled yet."""

    def start_clock(self) -> None:
        """Starts the time of the next step here, after an evaluation or a save."""
        self._clock = time.perf_counter()

    def add(self, step: int, learning_rate: float, result: StepResult, *, loss_scale: torch.Tensor | float) -> None:
        """Queues the result of step ``step`` (the first is 1) and records the one before."""
        fields = (
            result.loss,
            result.loss_min,
            result.loss_max,
            result.grad_norm,
            result.clipped,
            result.outcome,
            result.spike,
            loss_scale if isinstance(loss_scale, torch.Tensor) else torch.full_like(result.loss, loss_scale),
            *result.auxiliary.values(),
        )
        numbers, arrived = torch.stack([value.float() for value in fields]), None
        done_at = time.perf_counter() if numbers.device.type == "cpu" else None
        if numbers.is_cuda:  # copied behind this step; a later copy would wait for the end of the next step
            numbers, arrived = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        pending = _Pending(step, learning_rate, list(result.auxiliary), numbers, arrived, done_at)
        previous, self._pending = self._pending, pending
        if previous is not None:
            self._record(previous)

    def flush(self) -> None:
        """Records what is queued. Raises DivergedError where the policy ends the run."""
        previous, self._pending = self._pending, None
        if previous is not None:
            self._record(previous)

    def forget(self) -> None:
        """Drops what is queued, after the run has gone back to an earlier step."""
        self._pending, self.spike_step = None, None

    def _record(self, pending: "_Pending") -> None:
        step = pending.step
        if pending.arrived is not None:
            pending.arrived.synchronize()
        loss, loss_min, loss_max, grad_norm, clipped, code, held, loss_scale, *others = pending.numbers.tolist()
        outcome = Outcome(int(code))
        done_at = pending.done_at or time.perf_counter()
        seconds, self._clock = done_at - self._clock, done_at
        self._state.seconds += seconds
        bad = outcome >= Outcome.INFINITE_NORM
        spike = bool(held) or (not bad and self._spikes.is_spike(loss, self._state.recent_losses))
        auxiliary = {name: _known(value) for name, value in zip(pending.names, others, strict=True)}
        self._journal.record_step(
            {
                "step": step,
                "tokens": self._tokens_before(step),
                "loss": _known(loss),
                "loss_min": _known(loss_min),
                "loss_max": _known(loss_max),
                "learning_rate": pending.learning_rate,
                "grad_norm": _known(grad_norm),
                "clipped": bool(clipped),
                "nonfinite": bad,
                "outcome": "spike" if spike else outcome.label,
                "tokens_per_second": (self._tokens_before(step) - self._tokens_before(step - 1)) / seconds,
                "seconds": seconds,
                **auxiliary,
            }
        )
        self._count(outcome, loss, loss_scale, spike=spike)
        if bad:
            self._journal.record_event(
                Event.NONFINITE, step=step, outcome=outcome.label, in_a_row=self._state.nonfinite_in_a_row
            )
        if spike:
            self._journal.record_event(Event.SPIKE, step=step, loss=loss)
            self.spike_step = step
        self._policy.check(step=step, in_a_row=self._state.nonfinite_in_a_row)

    def _count(self, outcome: Outcome, loss: float, loss_scale: float, *, spike: bool) -> None:
        state = self._state
        if outcome < Outcome.INFINITE_NORM:
            state.nonfinite_in_a_row = 0
        elif outcome != Outcome.SCALE_OVERFLOW or loss_scale < MIN_LOSS_SCALE:
            state.nonfinite_in_a_row += 1
        if outcome < Outcome.INFINITE_NORM and math.isfinite(loss) and not spike:
            state.loss_sum += loss
            state.loss_count += 1
            self._spikes.remember(loss, state.recent_losses)


def _known(value: float) -> float | None:
    """The number, or None where it is not finite: records are strict JSON."""
    return value if math.isfinite(value) else None
