"""Loss on text that was not trained on. It draws nothing at random and changes nothing."""

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
from fromscratch.machine.precision import Precision
from fromscratch.processes.world import ALONE, World


@dataclass(frozen=True)
class TokenSlice:
    """The part of a split to evaluate on: every token after ``start`` is predicted once."""

    split: TokenSplit
    start: int
    tokens: int
    """Targets: tokens predicted."""

    @classmethod
    def of(cls, split: TokenSplit, *, start: int, tokens: int | None) -> "TokenSlice":
        """At most ``tokens`` targets from ``start``; None is all. Raises DataError when there is none."""
        available = split.tokens - start - 1
        if available < 1:
            raise DataError(
                f"split '{split.name}' has {split.tokens:,} tokens; evaluating from token {start:,} needs "
                f"at least {start + 2:,}"
            )
        return cls(split, start, min(tokens or available, available))


def sequence_losses(
    model: nn.Module,
    part: TokenSlice,
    *,
    context_length: int,
    batch: int,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Targets [n, T] and their losses in nats [n, T], batch after batch; the last one may be shorter.

    The slice is cut into sequences of the context's length, each seen without what came before. Of
    several processes, each gets its share of the batches.
    """
    with _evaluating(model):
        for begin, rows, length in world.local_shard(list(_windows(part.tokens, context_length, batch))):
            if stop():
                return
            flat = part.split.read(part.start + begin, rows * length + 1)
            inputs, targets = flat[:-1].reshape(rows, length), flat[1:].reshape(rows, length)
            with torch.inference_mode(), precision.arithmetic():
                losses = model.losses(  # type: ignore[operator]
                    torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
                )
            yield targets, losses.double().cpu().numpy()
            world.heartbeat()


def mean_loss(
    model: nn.Module,
    part: TokenSlice,
    *,
    context_length: int,
    batch: int,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> float | None:
    """Mean loss in nats per token, or None where ``stop`` said so before the end; the same in every process."""
    total = targets = 0.0
    for _, losses in sequence_losses(
        model,
        part,
        context_length=context_length,
        batch=batch,
        device=device,
        precision=precision,
        stop=stop,
        world=world,
    ):
        total += math.fsum(losses.ravel())
        targets += losses.size
    total, targets = world.sum(total), world.sum(targets)
    return total / targets if targets == part.tokens else None


def _windows(tokens: int, length: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """Begin, rows and row length of each batch; what is left over is one short row."""
    whole = tokens // length
    for first in range(0, whole, batch):
        yield first * length, min(batch, whole - first), length
    if rest := tokens - whole * length:
        yield whole * length, 1, rest


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
