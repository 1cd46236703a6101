"""Which tokens a training step sees: a function of the step alone.

Sequence *i* of a run is tokens ``[start + i*T, start + (i+1)*T]`` and one more, the last target
(T: context length). Step *s* takes sequences ``[s*G, (s+1)*G)`` (G: global batch). Processes and
micro-batches only divide that range, so neither a resume nor another machine can disturb it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
    """G: sequences per step."""
    start_token: int = 0
    epochs: int = 1
    shuffle_seed: int | None = None
    """Seed of the order of sequences; None keeps the store's order."""

    @property
    def sequences_per_epoch(self) -> int:
        """Whole sequences, with their last target, from ``start_token`` to the end of the split."""
        return max(0, (self.split.tokens - self.start_token - 1) // self.context_length)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.context_length

    @property
    def most_steps(self) -> int:
        """Steps until the split, read ``epochs`` times, is used up."""
        return self.sequences_per_epoch * self.epochs // self.global_batch

    def steps_for(self, tokens: int) -> int:
        """Steps that train on at least ``tokens`` tokens: rounded up to whole global batches.

        Raises:
            DataError: the split does not hold that many.
        """
        steps = -(-tokens // self.tokens_per_step)
        if steps > self.most_steps:
            raise DataError(self._what_is_missing(steps))
        return steps

    def _what_is_missing(self, steps: int) -> str:
        sequences = -(-steps * self.global_batch // self.epochs)  # per epoch
        needed = self.start_token + sequences * self.context_length + 1
        times = f", read {self.epochs} times," if self.epochs > 1 else ""
        advice = "lower data.tokens, raise data.epochs" + (", lower data.start_token" if self.start_token else "")
        return (
            f"split '{self.split.name}' has {self.split.tokens:,} tokens{times} but the run needs {needed:,} "
            f"({steps:,} steps of {self.tokens_per_step:,} tokens from token {self.start_token:,}, and the one after "
            f'the last); {advice}, or use tokens = "all" (that is {self.most_steps:,} steps)'
        )

    def sequence_indices(self, step: int) -> range:
        """The places in the run's order that a step takes."""
        return range(step * self.global_batch, (step + 1) * self.global_batch)

    def read(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Sequences by their place in the run's order: [len(indices), T + 1]."""
        length = self.context_length
        starts = [self.start_token + self._sequence_at(index) * length for index in indices]
        return np.stack([self.split.read(start, length + 1) for start in starts])

    def document_numbers(self, indices: Sequence[int], end_of_text: int) -> NDArray[np.int64]:
        """Which document each input belongs to, counted from 0 in every sequence: [len(indices), T].

        A model may use it as an attention mask: position i sees j only where both numbers are equal
        (and j <= i). The end-of-text belongs to the document it ends.
        """
        inputs = self.read(indices)[:, :-1]  # [len(indices), T]
        begins = np.zeros_like(inputs)
        begins[:, 1:] = inputs[:, :-1] == end_of_text
        return np.cumsum(begins, axis=1)

    def _sequence_at(self, index: int) -> int:
        epoch, place = divmod(index, self.sequences_per_epoch)
        if self.shuffle_seed is None:
            return place
        return int(_permutation(self.sequences_per_epoch, derive_seed(self.shuffle_seed, "shuffle", epoch))[place])


@lru_cache(maxsize=2)  # a batch may span the end of an epoch
def _permutation(length: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(length)
