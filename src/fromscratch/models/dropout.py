"""Dropout with one mask per sequence, independent of the batch that the sequence is in, and of the device.

Ordinary dropout draws one random stream per batch. Another micro-batch size, another number of processes
or a resume then gives other masks and another model. Here each sequence has a key, made from the run's
seed, the step and the sequence's index in the data. A mask depends only on that key and on the place in
the network. So a run file drops the same activations on every machine, however the global batch is divided.

The random bits are a hash of key, place and position, in 32-bit integer operations that give the same bits on
every device, eager and compiled; two neighbours share one hash, 16 bits each. ``torch.compile`` fuses them. The
keys are one tensor for all places, so new keys cause no recompilation. One exception: attention inside a CUDA
kernel draws its own bits, see ``flash.py``.

Without keys (a model used outside a run) it is ``torch.nn.Dropout``.

Sources: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting"; the
constants of the hash are those of "lowbias32" (Wellons 2018, "Prospecting for Hash Functions") and of
MurmurHash3's finaliser (Appleby).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .flash import kernel_counts_sequences

MASK_VERSION = 3
"""Which masks a run has, in its checkpoints. 1: those of earlier versions, which differed between CPUs and GPUs; 2: one
hash for each element."""
LARGEST_INT16 = 2**15 - 1
MASK_32 = (1 << 32) - 1
MASK_64 = (1 << 64) - 1
GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15  # odd, and far from any multiple of small integers (Knuth, TAOCP 6.4)
GOLDEN_RATIO_32 = GOLDEN_RATIO_64 >> 32
SITE_FACTOR = 0x85EBCA6B
FIRST_FACTOR, LAST_FACTOR = 0x7FEB352D, 0x846CA68B
BITS_PER_ELEMENT = 16  # probabilities are exact to 1/65536
CHUNK = 2**17
"""Elements that a CPU compares at once, half as many hashes: they stay in its second-level cache. Even."""


class Dropout(nn.Module):
    """Zeroes elements with ``probability`` in training and scales the rest by ``1 / (1 - probability)``."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.site = 0
        self.keys: Tensor | None = None
        """int32 [batch, 2] on the device: the low and the high half of each sequence's key."""
        self.kernel_key: Tensor | None = None
        """What a kernel that draws its own bits needs: int64 [2] in CPU memory, see ``set_sequence_keys``."""
        self.sequence_keys: tuple[int, ...] = ()
        """The keys on the host. Compiled code must not read them: new ones would compile it anew."""

    @property
    def active(self) -> bool:
        return self.training and self.probability > 0.0

    @property
    def threshold(self) -> int:
        """Random bits, taken as an int16, from here on are kept."""
        return min(round(self.probability * 2**BITS_PER_ELEMENT) - 2 ** (BITS_PER_ELEMENT - 1), LARGEST_INT16)

    @property
    def seeds(self) -> list[int]:
        """A seed for a generator, of each sequence at this place."""
        return [(key + (self.site + 1) * GOLDEN_RATIO_64) & MASK_64 for key in self.sequence_keys]

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [batch, ...], returned with the same shape."""
        if not self.active:
            return x
        if self.keys is None:
            return nn.functional.dropout(x, self.probability)
        keep = self.keep_mask(x.shape)
        if torch.compiler.is_compiling():  # torch 2.11 compiles the function below into a gradient of zero
            return x * keep.to(x.dtype) / (1.0 - self.probability)
        dropped: Tensor = _Masked.apply(x, keep, self.probability)  # type: ignore[no-untyped-call]
        return dropped

    def keep_mask(self, shape: torch.Size, *, is_causal: bool = False) -> Tensor:
        """Booleans [batch, ...]; True is kept. Row ``b`` depends on the key of sequence ``b``.

        Args:
            is_causal: the last two axes are queries and keys; elements of later keys are not needed, and undefined.
        """
        assert self.keys is not None
        if len(self.keys) != shape[0]:
            raise ValueError(f"{len(self.keys)} dropout keys for a batch of {shape[0]} sequences")
        if self.keys.device.type == "cpu" and not torch.compiler.is_compiling():
            return keep_in_chunks(self.keys, self.site, shape, self.threshold, is_causal)
        return (random_bits(self.keys, self.site, math.prod(shape[1:])) >= self.threshold).view(shape)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def zero_dropped(x: Tensor, keep: Tensor) -> Tensor:
    """``x``, zero where ``keep`` is False; without copying a mask in the type of ``x``."""
    if torch.compiler.is_compiling():
        return x * keep.to(x.dtype)
    return x * keep.view(torch.uint8)  # a CPU multiplies by booleans in four times as long


class _Masked(torch.autograd.Function):
    """Zero where ``keep`` is False, scaled elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, probability: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.probability = probability
        return zero_dropped(x, keep).div_(1.0 - probability)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return zero_dropped(upstream, keep).div_(1.0 - ctx.probability), None, None


def number_dropout_sites(model: nn.Module) -> None:
    """Gives every dropout of a model its own site number, in the order of its modules."""
    for site, module in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        module.site = site


def set_sequence_keys(
    model: nn.Module, keys: tuple[int, ...] | None, kernel_key: tuple[int, int] | None = None
) -> None:
    """Sets the keys of the next batch's sequences in every dropout; None removes them.

    Args:
        keys: 64 bits for each sequence.
        kernel_key: 63 bits that all sequences of the step share, and the index in the global batch of the first
            sequence; the others follow it. For kernels that draw their own bits; without it they run once per sequence.
    """
    dropouts = [m for m in model.modules() if isinstance(m, Dropout) and m.probability > 0.0]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    table = key_table(keys, device) if keys and dropouts else None
    shared = None
    if kernel_key and dropouts and device.type == "cuda" and kernel_counts_sequences(device):
        shared = torch.tensor(kernel_key)
    for dropout in dropouts:
        dropout.keys, dropout.kernel_key, dropout.sequence_keys = table, shared, keys or ()


def key_table(keys: tuple[int, ...], device: torch.device | str) -> Tensor:
    """The keys as int32 [batch, 2] on a device, without waiting for it."""
    table = torch.tensor([[_signed(key), _signed(key >> 32)] for key in keys], dtype=torch.int32)
    if torch.device(device).type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def random_bits(keys: Tensor, site: int, count: int) -> Tensor:
    """16 random bits for each of ``count`` positions: int32 [batch, count], from -32,768 to 32,767."""
    position = torch.arange(count, dtype=torch.int32, device=keys.device)
    low, high = keys[:, :1], keys[:, 1:]
    h = (position >> 1) * _signed(GOLDEN_RATIO_32) + low
    h = (h ^ _shifted_right(h, 16)) * _signed(FIRST_FACTOR)
    h = h ^ (high + _signed(site * SITE_FACTOR))
    h = (h ^ _shifted_right(h, 16)) * _signed(FIRST_FACTOR)
    h = (h ^ _shifted_right(h, 15)) * _signed(LAST_FACTOR)
    h = h ^ _shifted_right(h, 16)
    lowest = BITS_PER_ELEMENT * (1 - (position & 1))  # an even position has the low half of the hash
    return (h << lowest) >> BITS_PER_ELEMENT


@torch.library.custom_op(f"{__name__.replace('.', '_')}::keep_in_chunks", mutates_args=())
def keep_in_chunks(keys: Tensor, site: int, shape: list[int], threshold: int, is_causal: bool) -> Tensor:
    """Whether the random bits of each element reach the threshold, on a CPU: faster in chunks than in whole tensors.

    See ``Dropout.keep_mask``. It is one operator, so that a forecast on tensors without content does not run the loop.
    """
    count = math.prod(shape[1:])
    keep = torch.zeros(len(keys), count + count % 2, dtype=torch.bool)
    queries, columns = (1, *shape)[-2:]
    rows = max(1, CHUNK // columns)
    low, high = keys[:, :1], keys[:, 1:] + _signed(site * SITE_FACTOR)
    if is_causal and rows < queries and columns % 2 == 0:
        counters, matrices = _counters(rows * columns // 2).view(rows, columns // 2), keep.view(-1, queries, columns)
        per_sequence = len(matrices) // len(keys)
        parts = [
            (matrix[begin : begin + rows, :end], low[n // per_sequence], high[n // per_sequence], place)
            for n, matrix in enumerate(matrices)
            for begin in range(0, queries, rows)
            for end in [begin + rows + (begin + rows) % 2]
            for place in [(n % per_sequence * queries + begin) * columns]
        ]
    else:
        counters = _counters(min(CHUNK, keep.shape[1]) // 2)[None]
        sequences = max(1, CHUNK // keep.shape[1])
        parts = [
            (keep[n : n + sequences, begin : begin + CHUNK], low[n : n + sequences], high[n : n + sequences], begin)
            for n in range(0, len(keys), sequences)
            for begin in range(0, keep.shape[1], CHUNK)
        ]
    scratch = torch.empty(2, max(out.numel() for out, *_ in parts) // 2, dtype=torch.int32)
    for out, part_low, part_high, place in parts:
        h, shifted = (buffer[: out.numel() // 2].view(len(out), -1) for buffer in scratch)
        first = counters[: out.shape[0], : out.shape[1] // 2]
        torch.add(first, part_low + _signed(place // 2 * GOLDEN_RATIO_32), out=h)
        _mix_in_place(h, shifted, part_high)
        torch.ge(h.view(torch.int16), threshold, out=out)
    return keep[:, :count].reshape(shape)


@keep_in_chunks.register_fake
def _(keys: Tensor, site: int, shape: list[int], threshold: int, is_causal: bool) -> Tensor:  # noqa: ARG001
    return keys.new_empty(shape, dtype=torch.bool)


def _mix_in_place(h: Tensor, shifted: Tensor, key: Tensor) -> None:
    """What ``random_bits`` does with its counters; ``shifted`` is scratch memory of the shape of ``h``."""
    for step, (bits, factor) in enumerate(((16, FIRST_FACTOR), (16, FIRST_FACTOR), (15, LAST_FACTOR), (16, 1))):
        torch.bitwise_right_shift(h, bits, out=shifted)
        h.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))
        if factor != 1:
            h.mul_(_signed(factor))
        if step == 0:
            h.bitwise_xor_(key)


def _counters(count: int) -> Tensor:
    """Well spread numbers: int32 [count]."""
    return torch.arange(count, dtype=torch.int32) * _signed(GOLDEN_RATIO_32)


def _shifted_right(h: Tensor, bits: int) -> Tensor:
    """Logical shift: fills with zeros from the left."""
    return (h >> bits) & ((1 << (32 - bits)) - 1)


def _signed(number: int) -> int:
    """The int32 with the lowest 32 bits of a number."""
    number &= MASK_32
    return number - (1 << 32) if number >> 31 else number
