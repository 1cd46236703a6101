"""How many sequences each step takes, and how many the steps before it took: pure functions of the step."""

from bisect import bisect_right
from dataclasses import dataclass

from fromscratch.config.base import Positive, Table


class BatchRamp(Table):
    """A global batch that grows in equal stages up to ``train.global_batch`` (Brown et al. 2020, appendix B)."""

    start: Positive
    """Sequences per step at the beginning."""
    increment: Positive
    """Sequences by which each stage is larger than the one before."""
    steps: Positive
    """Steps of each stage."""


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a run's global batches, in sequences. Steps count from 0."""

    global_batch: int
    ramp: BatchRamp | None = None

    def before(self, step: int) -> int:
        """Sequences of all steps before ``step``: the sum of an arithmetic series."""
        if self.ramp is None:
            return step * self.global_batch
        start, increment, length = self.ramp.start, self.ramp.increment, self.ramp.steps
        stage = min(step // length, (self.global_batch - start) // increment)
        whole_stages = length * (stage * start + increment * (stage * (stage - 1) // 2))
        return whole_stages + (step - stage * length) * (start + stage * increment)

    def at(self, step: int) -> int:
        """Sequences of a step."""
        return self.before(step + 1) - self.before(step)

    def max_steps(self, sequences: int) -> int:
        """Number of whole steps that so many sequences are enough for."""
        if self.ramp is None:
            return sequences // self.global_batch
        return bisect_right(range(sequences // self.ramp.start + 2), sequences, key=self.before) - 1

    def steps_for(self, sequences: int) -> int:
        """Number of steps that take at least so many sequences."""
        steps = self.max_steps(sequences)
        return steps if self.before(steps) >= sequences else steps + 1
