"""A global batch as the micro-batches that fit the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fromscratch.data.batches import SequenceBatches
from fromscratch.errors import UsageError
from fromscratch.randomness import derive_seed

AUTO_TOKENS = {"cpu": 4_096, "mps": 8_192, "cuda": 16_384}
"""Tokens per micro-batch when none is given: small enough for any device that trains such models."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the model together."""

    inputs: Tensor
    """Token ids, [batch, time]."""
    targets: Tensor
    """The ids that follow, [batch, time]."""
    sequence_keys: tuple[int, ...]
    """One random seed per sequence, for what training draws at random."""


class Batches(Protocol):
    """The data of a run, by step."""

    @property
    def targets_per_step(self) -> int:
        """Losses in one global batch: what sums of losses are divided by."""

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """The global batch of a step, in pieces, on the device."""


@dataclass(frozen=True)
class TokenBatches:
    """Next-token prediction on the sequences of a token store."""

    sequences: SequenceBatches
    micro_batch: int
    seed: int
    device: torch.device

    @property
    def targets_per_step(self) -> int:
        return self.sequences.tokens_per_step

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        indices = self.sequences.sequence_indices(step)
        for begin in range(0, len(indices), self.micro_batch):
            yield self._load(step, indices[begin : begin + self.micro_batch])

    def _load(self, step: int, indices: range) -> MicroBatch:
        tokens = torch.from_numpy(self.sequences.read(indices))
        if self.device.type == "cuda":
            tokens = tokens.pin_memory().to(self.device, non_blocking=True)
        tokens = tokens.to(self.device)
        keys = tuple(derive_seed(self.seed, "dropout", step, index) for index in indices)
        return MicroBatch(tokens[:, :-1], tokens[:, 1:], keys)


def choose_micro_batch(requested: int | None, *, global_batch: int, context_length: int, device: torch.device) -> int:
    """Sequences per micro-batch: the one asked for, or the largest divisor of a safe size.

    Raises:
        UsageError: the one asked for does not divide the global batch.
    """
    divisors = [n for n in range(1, global_batch + 1) if global_batch % n == 0]
    if requested is None:
        limit = max(1, AUTO_TOKENS[device.type] // context_length)
        return max(n for n in divisors if n <= limit)
    if requested not in divisors:
        raise UsageError(
            f"--micro-batch {requested}: must divide train.global_batch = {global_batch}; "
            f"valid values are {', '.join(map(str, divisors))}"
        )
    return requested
