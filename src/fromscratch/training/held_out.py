"""Computes the loss on held-out text. Uses no random numbers and leaves the model unchanged."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fromscratch.data.store import TokenSplit
from fromscratch.errors import DataError
from fromscratch.models.language_model import LanguageModel
from fromscratch.training.objective import Runtime


@dataclass(frozen=True)
class TokenSlice:
    """A part of a split for evaluation: every token after ``start`` is predicted once."""

    split: TokenSplit
    start: int
    tokens: int
    """Number of predicted tokens (targets)."""

    @classmethod
    def of(cls, split: TokenSplit, *, start: int, tokens: int | None) -> "TokenSlice":
        """Returns the slice of at most ``tokens`` targets; None is all. Raises DataError if there are none."""
        available = split.tokens - start - 1
        if available < 1:
            raise DataError(
                f"split '{split.name}' has {split.tokens:,} tokens; evaluating from token {start:,} needs "
                f"at least {start + 2:,}; name another split or store{', or a lower start' if start else ''}"
            )
        return cls(split, start, min(tokens or available, available))


def sequence_losses(
    model: LanguageModel, part: TokenSlice, runtime: Runtime, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yields targets [n, T] and their losses in nats [n, T] for each batch; the last batch may have one shorter row.

    The slice is cut into sequences of the model's context length, each without the text before it. With several
    processes, each computes its shard of the batches.
    """
    world = runtime.world
    with evaluating(model):
        windows = list(_windows(part.tokens, model.context_length, runtime.micro_batch))
        for begin, rows, length in world.local_shard(windows):
            if stop():
                return
            flat = part.split.read(part.start + begin, rows * length + 1)
            inputs, targets = flat[:-1].reshape(rows, length), flat[1:].reshape(rows, length)
            with torch.inference_mode(), runtime.precision.arithmetic():
                losses = model.losses(*(torch.from_numpy(ids).to(runtime.device) for ids in (inputs, targets)))
            yield targets, losses.double().cpu().numpy()
            world.heartbeat()


def mean_loss(
    model: LanguageModel, part: TokenSlice, runtime: Runtime, *, stop: Callable[[], bool] = lambda: False
) -> float | None:
    """Returns the mean loss in nats per token, the same in every process; None where ``stop`` interrupted."""
    total = targets = 0.0
    for _, losses in sequence_losses(model, part, runtime, stop=stop):
        total += math.fsum(losses.ravel())
        targets += losses.size
    total, targets = runtime.world.sum(total), runtime.world.sum(targets)
    return total / targets if targets == part.tokens else None


def _windows(tokens: int, length: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """Yields begin, rows and row length of each batch; the remainder is one short row."""
    whole = tokens // length
    for first in range(0, whole, batch):
        yield first * length, min(batch, whole - first), length
    if rest := tokens - whole * length:
        yield whole * length, 1, rest


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
