"""Batches of examples of different lengths, as a function of the step alone.

Each epoch shuffles the examples by the seed, sorts them by length within pools, cuts them into global batches of
similar length, and shuffles these. All micro-batches of a step are as wide as the longest example of its global
batch. So neither the micro-batch nor the number of processes changes what a step computes, dropout included.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fromscratch.processes.world import ALONE, World, split_evenly
from fromscratch.randomness import derive_seed
from fromscratch.training.objective import MicroBatch

BATCHES_PER_POOL = 16  # more gives batches of more similar lengths, and of fewer combinations of examples

Collate = Callable[[Sequence[int], int], tuple[Tensor, Tensor]]
"""From indices of examples and a width to inputs [batch, width] and targets."""


@dataclass(frozen=True)
class EpochOrder:
    """The examples of each step. An epoch leaves out what remains after the last whole batch, each time others."""

    lengths: tuple[int, ...]
    """Tokens of each example."""
    global_batch: int
    seed: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.lengths) // self.global_batch

    @property
    def num_left_out(self) -> int:
        """Examples that an epoch leaves out."""
        return len(self.lengths) % self.global_batch

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def indices(self, step: int) -> list[int]:
        """Returns the examples of a step's global batch, the longest first."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batches = _batches_of_epoch(self.lengths, self.global_batch, derive_seed(self.seed, "shuffle", epoch))
        return batches[place].tolist()


@lru_cache(maxsize=2)
def _batches_of_epoch(lengths: tuple[int, ...], global_batch: int, seed: int) -> NDArray[np.int64]:
    """Returns the indices of each batch, [batches, global_batch]."""
    generator, num_batches = np.random.default_rng(seed), len(lengths) // global_batch
    order = generator.permutation(len(lengths))[: num_batches * global_batch]
    sizes = np.array(lengths)
    pool = BATCHES_PER_POOL * global_batch
    pools = [order[begin : begin + pool] for begin in range(0, len(order), pool)]
    ordered = np.concatenate([part[np.argsort(-sizes[part], kind="stable")] for part in pools])
    return generator.permutation(ordered.reshape(num_batches, global_batch))


@dataclass(frozen=True)
class PaddedBatches:
    """The examples of a run in micro-batches. See ``Batches`` in ``training/objective.py``."""

    order: EpochOrder
    collate: Collate
    micro_batch: int
    device: torch.device
    targets_per_example: int
    """Maximum number of targets of one example."""
    world: World = ALONE

    def targets_in(self, step: int) -> int:
        return self.order.global_batch * self.targets_per_example

    @property
    def max_steps(self) -> int:
        return self.order.num_steps

    def num_micro_batches(self, step: int) -> int:
        return -(-len(self.world.local_shard(range(self.order.global_batch))) // self.micro_batch)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        whole = self.order.indices(step)
        width = max(self.order.lengths[index] for index in whole)
        local, kernel_seed = self.world.local_shard(whole), derive_seed(self.order.seed, "attention-dropout", step)
        first = split_evenly(len(whole), self.world.size)[self.world.rank][0]
        for begin, end in split_evenly(len(local), self.num_micro_batches(step)):
            indices = local[begin:end]
            inputs, targets = (tensor.to(self.device) for tensor in self.collate(indices, width))
            keys = tuple(derive_seed(self.order.seed, "dropout", step, index) for index in indices)
            yield MicroBatch(inputs, targets, keys, (kernel_seed, first + begin))

    def smaller(self) -> "PaddedBatches | None":
        half = math.ceil(self.micro_batch / 2)
        return replace(self, micro_batch=half) if half < self.micro_batch else None


def held_out_batches(lengths: Sequence[int], *, micro_batch: int) -> list[tuple[list[int], int]]:
    """Returns the examples of each batch of an evaluation, and its width; similar lengths together."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    parts = [order[begin : begin + micro_batch] for begin in range(0, len(order), micro_batch)]
    return [(part, lengths[part[0]]) for part in parts]
