"""A global batch as the micro-batches that fit the device."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fromscratch.data.batches import SequenceBatches
from fromscratch.errors import UsageError
from fromscratch.processes.world import ALONE, World, split_evenly
from fromscratch.randomness import derive_seed
from fromscratch.training.prefetch import Prefetcher

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

    @property
    def micro_batch(self) -> int:
        """Most sequences at once."""

    @property
    def most_steps(self) -> int:
        """Global batches that there are."""

    @property
    def num_micro_batches(self) -> int:
        """Pieces that this process's share of a global batch comes in."""

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This process's share of the global batch of a step, in pieces, on the device."""

    def smaller(self) -> "Batches | None":
        """The same global batches in about twice as many pieces, or None where a piece is one sequence."""


@dataclass(frozen=True)
class TokenBatches:
    """Next-token prediction on the sequences of a token store."""

    sequences: SequenceBatches
    micro_batch: int
    """Most sequences at once; a share that it does not divide comes in pieces as even as can be."""
    seed: int
    device: torch.device
    world: World = ALONE
    prefetch: bool = False
    """Whether a thread reads the next micro-batch while the device is busy with this one."""

    @property
    def targets_per_step(self) -> int:
        return self.sequences.tokens_per_step

    @property
    def most_steps(self) -> int:
        return self.sequences.most_steps

    @property
    def num_micro_batches(self) -> int:
        return -(-len(self._share(0)) // self.micro_batch)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        places = self._places(step)
        if not self.prefetch:
            for place in places:
                yield self._to_device(self._load(*place))
            return
        following = [*places[1:], *(self._places(step + 1)[:1] if step + 1 < self.most_steps else [None])]
        for place, then in zip(places, following, strict=True):
            yield self._to_device(self._prefetcher.take(place, then))

    def smaller(self) -> "TokenBatches | None":
        half = math.ceil(self.micro_batch / 2)
        return replace(self, micro_batch=half) if half < self.micro_batch else None

    @cached_property
    def _prefetcher(self) -> "Prefetcher[tuple[int, Sequence[int]], MicroBatch]":
        return Prefetcher(lambda place: self._load(*place))

    def _places(self, step: int) -> list[tuple[int, Sequence[int]]]:
        """The step and the sequences of each micro-batch."""
        indices = self._share(step)
        return [(step, indices[begin:end]) for begin, end in split_evenly(len(indices), self.num_micro_batches)]

    def _share(self, step: int) -> Sequence[int]:
        return self.world.local_shard(self.sequences.sequence_indices(step))

    def _load(self, step: int, indices: Sequence[int]) -> MicroBatch:
        """A micro-batch in the computer's memory, pinned where a CUDA device will fetch it."""
        tokens = torch.from_numpy(self.sequences.read(indices))
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if self.device.type == "cuda":
            # slices of rows are not contiguous, and such a copy would go through memory that is not pinned
            inputs, targets = inputs.contiguous().pin_memory(), targets.contiguous().pin_memory()
        keys = tuple(derive_seed(self.seed, "dropout", step, index) for index in indices)
        return MicroBatch(inputs, targets, keys)

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        asynchronous = self.device.type == "cuda"  # from pinned memory, so that nobody waits
        inputs, targets = (t.to(self.device, non_blocking=asynchronous) for t in (batch.inputs, batch.targets))
        return MicroBatch(inputs, targets, batch.sequence_keys)


def choose_micro_batch(
    requested: int | None, *, global_batch: int, context_length: int, device: torch.device, world_size: int = 1
) -> int:
    """Sequences per micro-batch: the one asked for, or one of a safe size.

    Raises:
        UsageError: the one asked for and the number of processes do not divide the global batch, or
            there are more processes than sequences.
    """
    if world_size > global_batch:
        raise UsageError(
            f"{world_size} processes, but train.global_batch = {global_batch} sequences; use at most {global_batch}"
        )
    largest_share = -(-global_batch // world_size)
    if requested is None:
        return max(1, min(largest_share, AUTO_TOKENS[device.type] // context_length))
    valid = [n for n in range(1, largest_share + 1) if global_batch % (n * world_size) == 0]
    if requested not in valid:
        processes = f" over {world_size} processes" if world_size > 1 else ""
        listed = f"valid values are {', '.join(map(str, valid))}" if valid else "leave it out to divide it unevenly"
        raise UsageError(
            f"--micro-batch {requested}: must divide train.global_batch = {global_batch}{processes}; {listed}"
        )
    return requested
