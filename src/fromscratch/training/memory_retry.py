"""Out of memory: the same step again with half the micro-batch, which changes no result."""

from collections.abc import Callable
from typing import Never

from fromscratch.errors import FromScratchError
from fromscratch.machine.memory import is_memory_error
from fromscratch.runs.states import Event
from fromscratch.training.journal import Journal
from fromscratch.training.step import GlobalOutOfMemoryError, Stepper, StepResult


class MemoryRetry:
    """Takes steps of a run, with smaller micro-batches where memory runs out."""

    def __init__(self, stepper: Stepper, journal: Journal) -> None:
        self._stepper = stepper
        self._journal = journal

    def probe(self, step: int, *, data_step: int) -> None:
        """Tries a micro-batch, and smaller ones until all processes have memory for it. Changes no weight.

        Raises:
            FromScratchError: not even one sequence fits.
        """
        while self._stepper.parallelism.world.any(not self._stepper.probe_memory(data_step)):
            self._halve_micro_batch(step)

    def take(self, step: int, attempt: Callable[[], StepResult]) -> StepResult:
        """Attempts a step until it fits. A failed attempt has changed nothing.

        Raises:
            FromScratchError: not even one sequence fits, or this process alone ran out of memory too late.
        """
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                if not is_memory_error(error):
                    raise
                if self._stepper.parallelism.world.size > 1 and not isinstance(error, GlobalOutOfMemoryError):
                    self._end_for_restart()  # the other ranks already wait for this one's gradients
            self._halve_micro_batch(step)

    def _halve_micro_batch(self, step: int) -> None:
        self._stepper.forget_gradients()
        smaller = self._stepper.batches.smaller()
        if smaller is None:
            raise FromScratchError(
                "out of memory with a single sequence; use --activation-checkpointing, a shorter "
                "model.context_length, a smaller model, or a device with more memory"
            )
        self._stepper.batches = smaller
        if self._journal.writes:
            self._journal.run.update_machine(micro_batch=smaller.micro_batch)
        self._journal.record_event(Event.SMALLER_MICRO_BATCH, step=step, pieces=smaller.num_micro_batches(step))

    def _end_for_restart(self) -> Never:
        """Ends this process. A restart takes the smaller micro-batch that is recorded here."""
        smaller = self._stepper.batches.smaller()
        size = smaller.micro_batch if smaller else 1
        self._journal.run.update_machine(micro_batch=size)
        raise FromScratchError(
            f"out of memory in the last backward pass of a step; the same command resumes with micro-batch {size} "
            "(where you gave --micro-batch, give that one)"
        )
