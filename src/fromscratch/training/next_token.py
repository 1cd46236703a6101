"""Next-token prediction on a token store: the objective of pre-training."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from fromscratch.data.batches import SequenceBatches
from fromscratch.data.verify import one_token_warnings
from fromscratch.machine.memory import default_micro_batch
from fromscratch.models.language_model import LanguageModel
from fromscratch.processes.world import ALONE, World, split_evenly
from fromscratch.randomness import derive_seed
from fromscratch.training.held_out import HeldOut, mean_loss
from fromscratch.training.objective import Carry, LossSum, MicroBatch, Runtime
from fromscratch.training.prefetch import Prefetcher


def next_token_loss(model: LanguageModel, batch: MicroBatch, carry: Carry) -> LossSum:
    """Cross-entropy of every next token; every target counts."""
    if carry:
        losses, carry = model.losses_and_carry(batch.inputs, batch.targets, carry)
        return LossSum(losses.sum(), batch.targets.numel(), carry)
    losses, auxiliary, penalty = model.training_losses(batch.inputs, batch.targets)
    return LossSum(losses.sum(), batch.targets.numel(), carry, auxiliary, penalty)


@dataclass(frozen=True)
class NextToken:
    """Predicts every token of a token store from those before it. See ``Objective``."""

    sequences: SequenceBatches
    seed: int
    """Names the dropout of every sequence."""
    store_fingerprint: str
    """Identifies the store by its content."""
    held_out: HeldOut | None = None
    sampler: Callable[[LanguageModel], list[str]] = lambda _model: []

    @property
    def identity(self) -> dict[str, Any]:
        return {"data.store": self.store_fingerprint}

    @property
    def tokens_per_step(self) -> int:
        return self.sequences.tokens_per_step

    @property
    def is_evaluated(self) -> bool:
        return self.held_out is not None

    def notices(self) -> list[str]:
        return list(one_token_warnings(self.sequences.split))

    def batches(self, runtime: Runtime) -> "TokenBatches":
        prefetch = runtime.device.type == "cuda"
        return TokenBatches(self.sequences, runtime.micro_batch, self.seed, runtime.device, runtime.world, prefetch)

    def loss(self, model: LanguageModel, batch: MicroBatch, carry: Carry) -> LossSum:
        return next_token_loss(model, batch, carry)

    def initial_carry(self, model: LanguageModel, num_sequences: int) -> Carry:
        return model.initial_carry(num_sequences)

    def evaluate(self, model: LanguageModel, runtime: Runtime, stop: Callable[[], bool]) -> float | None:
        assert self.held_out is not None
        batch = max(runtime.micro_batch, default_micro_batch(runtime.device, model.context_length))
        return mean_loss(model, self.held_out, replace(runtime, micro_batch=batch), stop=stop)

    def sample(self, model: LanguageModel) -> list[str]:
        return self.sampler(model)


@dataclass(frozen=True)
class TokenBatches:
    """The sequences of a token store, in micro-batches."""

    sequences: SequenceBatches
    micro_batch: int
    """Maximum number of sequences at once. A shard that it does not divide is divided as evenly as possible."""
    seed: int
    device: torch.device
    world: World = ALONE
    prefetch: bool = False
    """Whether a background thread reads the next micro-batch while the device computes this one."""

    def targets_in(self, step: int) -> int:
        return len(self.sequences.sequence_indices(step)) * self.sequences.context_length

    @property
    def max_steps(self) -> int:
        return self.sequences.max_steps

    def num_micro_batches(self, step: int) -> int:
        return -(-len(self._local_shard(step)) // self.micro_batch)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        places = self._places(step)
        following = [*places[1:], *(self._places(step + 1)[:1] if step + 1 < self.max_steps else [None])]
        key = derive_seed(self.seed, "attention-dropout", step)
        begins_text = self.sequences.begins_text(step)
        first, _ = split_evenly(self.sequences.sizes.at(step), self.world.size)[self.world.rank]
        for place, then in zip(places, following, strict=True):
            batch = self._prefetcher.take(place, then) if self.prefetch else self._load(*place)
            yield replace(self._to_device(batch), kernel_key=(key, first), begins_text=begins_text)
            first += len(batch.inputs)

    def smaller(self) -> "TokenBatches | None":
        half = math.ceil(self.micro_batch / 2)
        return replace(self, micro_batch=half) if half < self.micro_batch else None

    @cached_property
    def _prefetcher(self) -> "Prefetcher[tuple[int, Sequence[int]], MicroBatch]":
        return Prefetcher(lambda place: self._load(*place))

    def _places(self, step: int) -> list[tuple[int, Sequence[int]]]:
        """The step, and the sequence indices of each micro-batch."""
        indices = self._local_shard(step)
        return [(step, indices[begin:end]) for begin, end in split_evenly(len(indices), self.num_micro_batches(step))]

    def _local_shard(self, step: int) -> Sequence[int]:
        return self.world.local_shard(self.sequences.sequence_indices(step))

    def _load(self, step: int, indices: Sequence[int]) -> MicroBatch:
        """Reads a micro-batch into host memory, pinned for a CUDA device."""
        tokens = torch.from_numpy(self.sequences.read(indices))
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if self.device.type == "cuda":
            # column slices are not contiguous; an asynchronous copy needs contiguous pinned memory
            inputs, targets = inputs.contiguous().pin_memory(), targets.contiguous().pin_memory()
        keys = tuple(derive_seed(self.seed, "dropout", step, index) for index in indices)
        return MicroBatch(inputs, targets, keys)

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        asynchronous = self.device.type == "cuda"
        inputs, targets = (t.to(self.device, non_blocking=asynchronous) for t in (batch.inputs, batch.targets))
        return replace(batch, inputs=inputs, targets=targets)
