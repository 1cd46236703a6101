"""The tokens of a training step, as a function of the step alone.

Sequence *i* of a run is tokens ``[start + i*T, start + (i+1)*T]``: T inputs (T: context length) and
one more, the last target. Step *s* takes sequences ``[s*G, (s+1)*G)`` (G: global batch); with a
batch ramp, those after the sum of the sizes of earlier steps. Ranks and micro-batches only divide that range, so a
resume or another machine cannot change the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from fromscratch.config.batch_sizes import BatchRamp, BatchSizes
from fromscratch.data.store import TokenSplit
from fromscratch.errors import DataError
from fromscratch.randomness import derive_seed


@dataclass(frozen=True)
class SequenceBatches:
    """The sequences of a run, by step."""

    split: TokenSplit
    context_length: int
    """T: inputs per sequence; T + 1 tokens are read."""
    global_batch: int
    """G: sequences per step; with a ramp, per step after it."""
    start_token: int = 0
    epochs: int = 1
    shuffle_seed: int | None = None
    """Seed of the order of sequences; None keeps the store's order."""
    ramp: BatchRamp | None = None

    @property
    def sizes(self) -> BatchSizes:
        """The number of sequences of every step."""
        return BatchSizes(self.global_batch, self.ramp)

    @property
    def sequences_per_epoch(self) -> int:
        """Whole sequences, with their last target, from ``start_token`` to the end of the split."""
        return max(0, (self.split.tokens - self.start_token - 1) // self.context_length)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.context_length

    @cached_property
    def max_steps(self) -> int:
        """Steps until the split, read ``epochs`` times, is used up."""
        return self.sizes.max_steps(self.sequences_per_epoch * self.epochs)

    def steps_for(self, tokens: int) -> int:
        """Returns the steps that train on at least ``tokens`` tokens, rounded up to whole global batches.

        Raises:
            DataError: the split does not hold that many.
        """
        steps = self.sizes.steps_for(-(-tokens // self.context_length))
        if steps > self.max_steps:
            raise DataError(self._too_few_tokens(steps))
        return steps

    def _too_few_tokens(self, steps: int) -> str:
        needed = self._min_tokens_for(steps)
        times = f", read {self.epochs} times," if self.epochs > 1 else ""
        start = "data.start_token, " if self.start_token else ""
        largest = "up to " if self.ramp else ""
        advice = f"lower {start}train.global_batch or model.context_length"
        if self.sequences_per_epoch:
            epochs = -(-self.sizes.before(steps) // self.sequences_per_epoch)
            if self.max_steps:
                advice = f"take all there is (--set data.tokens=all: {self.max_steps:,} steps)"
            advice += f", or read it more often (--set data.epochs={epochs})"
        return (
            f"split '{self.split.name}' has {self.split.tokens:,} tokens{times} but the run needs {needed:,} "
            f"({steps:,} steps of {largest}{self.tokens_per_step:,} tokens {self._layout}); {advice}"
        )

    @property
    def _layout(self) -> str:
        return f"from token {self.start_token:,}, and the one after the last"

    def _min_tokens_for(self, steps: int) -> int:
        sequences = -(-self.sizes.before(steps) // self.epochs)  # per epoch
        return self.start_token + sequences * self.context_length + 1

    def begins_text(self, step: int) -> bool:
        """Whether the sequences of a step begin texts, so that a state carried from the step before is reset."""
        return False

    def sequence_indices(self, step: int) -> range:
        """Returns the indices of a step's sequences in the run's order."""
        return range(self.sizes.before(step), self.sizes.before(step + 1))

    def read(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Reads sequences by their index in the run's order: [len(indices), T + 1]."""
        length = self.context_length
        return np.stack([self.split.read(self._start_of(index), length + 1) for index in indices])

    def _start_of(self, index: int) -> int:
        """Returns the index in the split of a sequence's first token."""
        return self.start_token + self._sequence_at(index) * self.context_length

    def _sequence_at(self, index: int) -> int:
        epoch, position = divmod(index, self.sequences_per_epoch)
        if self.shuffle_seed is None:
            return position
        return int(_permutation(self.sequences_per_epoch, derive_seed(self.shuffle_seed, "shuffle", epoch))[position])


@lru_cache(maxsize=2)  # a batch may span the end of an epoch
def _permutation(length: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(length)
