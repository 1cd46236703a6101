"""Learns to respond to instructions: the objective of instruction tuning.

An example is prompt, response and the end-of-text token. Prompt and response are encoded apart, because generation
encodes a prompt alone. Padding follows the end of text and is not learned; the prompt is learned unless masked.

Source: Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fromscratch.config.prompts import PromptFormat
from fromscratch.errors import DataError
from fromscratch.finetuning.batches import EpochOrder, PaddedBatches, held_out_batches
from fromscratch.finetuning.records import Exchange
from fromscratch.models.language_model import LanguageModel
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import evaluating
from fromscratch.training.objective import Carry, LossSum, MicroBatch, Runtime

IGNORED = -1
"""The target that does not count."""


@dataclass(frozen=True)
class Example:
    """One record as tokens."""

    inputs: NDArray[np.int64]
    """Ids [T]."""
    targets: NDArray[np.int64]
    """The next ids [T]; ``IGNORED`` where a prompt is masked."""


@dataclass(frozen=True)
class Examples:
    """The examples of one part, and what became of its records."""

    kept: list[Example]
    num_cut: int
    """Records longer than the context; their ends are cut off."""
    num_dropped: int
    """Records of which nothing is left to learn, because the prompt alone fills the context."""

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(example.inputs) for example in self.kept)

    @property
    def num_targets(self) -> int:
        return sum(int((example.targets != IGNORED).sum()) for example in self.kept)


def encode_examples(
    exchanges: Sequence[Exchange], tokenizer: Tokenizer, form: PromptFormat, *, mask_prompt: bool, context_length: int
) -> Examples:
    """Encodes records; cuts them to the context. All of a record's responses are learned.

    Raises:
        UsageError: the tokenizer has no end-of-text token.
    """
    tokenizer.check_end_of_text("ends a response; a model without one cannot be tuned")
    pieces = [exchange.pieces(form) for exchange in exchanges]
    encoded = iter(tokenizer.encode_documents([text for parts in pieces for text, _ in parts]))
    kept, num_cut, num_dropped = [], 0, 0
    for parts in pieces:
        ids, counts = [], []
        for _, is_response in parts:
            piece = next(encoded).astype(np.int64)
            ids.append(piece)
            counts.append(np.full(len(piece), is_response or not mask_prompt))
        whole = np.concatenate([*ids, [tokenizer.end_of_text]])
        learned = np.concatenate([*counts, [True]])
        num_cut += len(whole) > context_length + 1
        whole, learned = whole[: context_length + 1], learned[: context_length + 1]
        targets = np.where(learned, whole, IGNORED)[1:]
        is_response_left = len(ids[0]) <= context_length
        if is_response_left:
            kept.append(Example(whole[:-1], targets))
        num_dropped += not is_response_left
    return Examples(kept, num_cut - num_dropped, num_dropped)


def collate(examples: Sequence[Example], end_of_text: int, indices: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
    """Pads examples on the right: inputs and targets [batch, width]."""
    inputs = np.full((len(indices), width), end_of_text, dtype=np.int64)
    targets = np.full((len(indices), width), IGNORED, dtype=np.int64)
    for row, index in enumerate(indices):
        example = examples[index]
        inputs[row, : len(example.inputs)] = example.inputs
        targets[row, : len(example.targets)] = example.targets
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@dataclass(frozen=True)
class InstructionTuning:
    """Predicts the next token of responses, and of prompts unless they are masked. See ``Objective``."""

    training: Examples
    validation: Examples
    order: EpochOrder
    context_length: int
    end_of_text: int
    fingerprint: str
    """Identifies the records by their content."""
    split_notices: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        return {"data.store": self.fingerprint}

    @property
    def tokens_per_step(self) -> int:
        """Targets that count in a step, on average over the training part, rounded up."""
        return -(-self.training.num_targets * self.order.global_batch // len(self.training.kept))

    @property
    def is_evaluated(self) -> bool:
        return True

    def notices(self) -> list[str]:
        cut = self.training.num_cut + self.validation.num_cut
        dropped = self.training.num_dropped + self.validation.num_dropped
        left_out = self.order.num_left_out
        found = [
            (cut, f"{cut:,} records are longer than the context of {self.context_length:,} tokens; their ends are cut"),
            (dropped, f"{dropped:,} records are dropped, because the prompt alone fills the context"),
            (
                left_out,
                f"each epoch leaves out {left_out:,} of {len(self.training.kept):,} training records, each time "
                "others, because a step takes a whole global batch",
            ),
        ]
        return [*self.split_notices, *(text for count, text in found if count)]

    def batches(self, runtime: Runtime) -> PaddedBatches:
        return PaddedBatches(
            self.order,
            partial(collate, self.training.kept, self.end_of_text),
            runtime.micro_batch,
            runtime.device,
            self.context_length,
            runtime.world,
        )

    def loss(self, model: LanguageModel, batch: MicroBatch, carry: Carry) -> LossSum:
        counts = batch.targets != IGNORED
        losses, auxiliary, penalty = model.training_losses(batch.inputs, batch.targets, counts)
        return LossSum(losses.sum(), counts.sum(), carry, auxiliary, penalty)

    def initial_carry(self, model: LanguageModel, num_sequences: int) -> Carry:
        return {}

    def evaluate(self, model: LanguageModel, runtime: Runtime, stop: Callable[[], bool]) -> float | None:
        """Returns the mean validation loss in nats per target; None where ``stop`` interrupted."""
        total, counted, world = 0.0, 0.0, runtime.world
        batches = held_out_batches(self.validation.lengths, micro_batch=runtime.micro_batch)
        with evaluating(model):
            for indices, width in world.local_shard(batches):
                if stop():
                    break
                inputs, targets = collate(self.validation.kept, self.end_of_text, indices, width)
                batch = MicroBatch(inputs.to(runtime.device), targets.to(runtime.device), ())
                with torch.inference_mode(), runtime.precision.arithmetic():
                    loss = self.loss(model, batch, {})
                total, counted = total + float(loss.total.double()), counted + float(loss.num_targets)
                world.heartbeat()
        total, counted = world.sum(total), world.sum(counted)
        return total / counted if counted == self.validation.num_targets else None

    def sample(self, model: Any) -> list[str]:
        return []


def check_parts(training: Examples, validation: Examples, *, global_batch: int, where: str) -> None:
    """Raises DataError where a part has nothing to learn from, or the training part is smaller than a batch."""
    for name, part in (("training", training), ("validation", validation)):
        if not part.kept:
            raise DataError(
                f"{where}: no record of the {name} part fits into the context; shorten the prompts, or take a model "
                "with a longer context"
            )
    if len(training.kept) < global_batch:
        raise DataError(
            f"{where}: the training part has {len(training.kept)} records, but train.global_batch = {global_batch}; "
            "lower it, or give more records"
        )
