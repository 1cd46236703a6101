"""Computes the loss on held-out text. Uses no random numbers and leaves the model unchanged."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fromscratch.data.store import TokenSplit
from fromscratch.errors import DataError, UsageError
from fromscratch.models.language_model import LanguageModel
from fromscratch.training.objective import Carry, Runtime


@dataclass(frozen=True)
class TokenSlice:
    """A part of a split for evaluation: every token after ``start`` is predicted once."""

    split: TokenSplit
    start: int
    tokens: int
    """Number of predicted tokens (targets)."""

    @classmethod
    def of(cls, split: TokenSplit, *, start: int, tokens: int | None) -> "TokenSlice":
        """Returns the slice of at most ``tokens`` targets; None is all.

        Raises:
            UsageError: ``start`` is negative, or ``tokens`` is not positive.
            DataError: the split ends before the slice begins.
        """
        if start < 0:
            raise UsageError(f"start = {start}: must be 0 or more, the index of the first token")
        if tokens is not None and tokens < 1:
            raise UsageError(f"tokens = {tokens}: must be 1 or more; leave it out for all")
        available = split.tokens - start - 1
        if available < 1:
            raise DataError(
                f"split '{split.name}' has {split.tokens:,} tokens; evaluating from token {start:,} needs "
                f"at least {start + 2:,}; name another split or store{', or a lower start' if start else ''}"
            )
        return cls(split, start, available if tokens is None else min(tokens, available))

    @property
    def texts(self) -> list[tuple[int, int]]:
        """First token and number of predicted tokens of each continuous text."""
        return [(self.start, self.tokens)]

    def targets(self) -> NDArray[np.int64]:
        """Reads the predicted tokens."""
        return self.split.read(self.start + 1, self.tokens)


@dataclass(frozen=True)
class HeldOutLanes:
    """Parts of a split for evaluation, of equal length: a model that carries a state reads each of them as one text."""

    split: TokenSplit
    starts: tuple[int, ...]
    """Index of the first token of each part."""
    tokens_per_lane: int
    """Predicted tokens of each part."""

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return len(self.starts) * self.tokens_per_lane

    @property
    def texts(self) -> list[tuple[int, int]]:
        """First token and number of predicted tokens of each continuous text."""
        return [(start, self.tokens_per_lane) for start in self.starts]

    def targets(self) -> NDArray[np.int64]:
        """Reads the predicted tokens."""
        return np.concatenate([self.split.read(start + 1, self.tokens_per_lane) for start in self.starts])


HeldOut = TokenSlice | HeldOutLanes

LANES_OF_A_SLICE = 16
"""Texts into which a slice is divided for a model that carries a state; each begins at the initial state."""

Losses = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Targets [n, T], and their losses in nats [n, T]."""


def sequence_losses(
    model: LanguageModel, part: HeldOut, runtime: Runtime, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[Losses]:
    """Yields targets [n, T] and their losses in nats [n, T], in the order of the text; the last row may be shorter.

    A slice is cut into sequences of the model's context length, each without the text before it. A model that
    carries a state reads a slice as up to 16 long texts, and keeps the state from sequence to sequence of each.
    With several processes, each computes its shard.
    """
    world = runtime.world
    with evaluating(model):
        if isinstance(part, HeldOutLanes) or model.initial_carry(1):
            lanes = world.local_shard(_lanes(part, model.context_length))
            for begin in range(0, len(lanes), runtime.micro_batch):
                together = lanes[begin : begin + runtime.micro_batch]
                yield from _lane_losses(model, part.split, together, runtime, stop)
            return
        windows = list(_windows(part.tokens, model.context_length, runtime.micro_batch))
        for begin, rows, length in world.local_shard(windows):
            if stop():
                return
            flat = part.split.read(part.start + begin, rows * length + 1)
            inputs, targets = flat[:-1].reshape(rows, length), flat[1:].reshape(rows, length)
            yield targets, _losses(model, inputs, targets, {}, runtime)[0]


def _losses(
    model: LanguageModel, inputs: NDArray[np.int64], targets: NDArray[np.int64], carry: Carry, runtime: Runtime
) -> tuple[NDArray[np.float64], Carry]:
    """Returns the losses of sequences [n, T], and the carry after them."""
    ids, wanted = (torch.from_numpy(part).to(runtime.device) for part in (inputs, targets))
    with torch.inference_mode(), runtime.precision.arithmetic():
        losses, carry = model.losses_and_carry(ids, wanted, carry)
    runtime.world.heartbeat()
    return losses.double().cpu().numpy(), carry


def _lanes(part: HeldOut, length: int) -> list[tuple[int, int]]:
    """Returns the first token and the number of predicted tokens of each lane; the last one may be longer."""
    if isinstance(part, HeldOutLanes):
        return part.texts
    whole = part.tokens // length
    count = max(1, min(LANES_OF_A_SLICE, whole))
    each = whole // count * length
    last = part.tokens - (count - 1) * each
    return [(part.start + lane * each, each if lane < count - 1 else last) for lane in range(count)]


def _lane_losses(
    model: LanguageModel,
    split: TokenSplit,
    lanes: Sequence[tuple[int, int]],
    runtime: Runtime,
    stop: Callable[[], bool],
) -> Iterator[Losses]:
    """Reads lanes together as far as all of them reach, then the rest of the last one."""
    length, carry = model.context_length, model.initial_carry(len(lanes))
    common, (last_start, last_tokens) = lanes[0][1], lanes[-1]
    found: list[Losses] = []
    for begin in range(0, common, length):
        if stop():
            return
        size = min(length, common - begin) + 1
        tokens = np.stack([split.read(start + begin, size) for start, _ in lanes])
        losses, carry = _losses(model, tokens[:, :-1], tokens[:, 1:], carry, runtime)
        found.append((tokens[:, 1:], losses))
    width = found[0][1].shape[1]
    whole = [pair for pair in found if pair[1].shape[1] == width]
    yield _in_order([targets for targets, _ in whole]), _in_order([losses for _, losses in whole])
    yield from found[len(whole) :]
    carry = {name: rows[-1:] for name, rows in carry.items()}
    for begin in range(common, last_tokens, length):
        if stop():
            return
        tokens = split.read(last_start + begin, min(length, last_tokens - begin) + 1)[None]
        losses, carry = _losses(model, tokens[:, :-1], tokens[:, 1:], carry, runtime)
        yield tokens[:, 1:], losses


def _in_order(columns: list[NDArray[Any]]) -> NDArray[Any]:
    """The sequences [lanes, T] of every step, as rows in the order of the text: [lanes x steps, T]."""
    return np.stack(columns, axis=1).reshape(-1, columns[0].shape[1])


def mean_loss(
    model: LanguageModel, part: HeldOut, runtime: Runtime, *, stop: Callable[[], bool] = lambda: False
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
