"""Dropout whose masks belong to the sequence, not to the batch it travels in.

Ordinary dropout draws one stream of random numbers for a whole batch, so another micro-batch size,
another number of processes or a resume at another point gives other masks and another model. Here
each sequence has a key (made from the run's seed, the step and the sequence's index in the data),
and a mask depends on that key and on the place in the network alone. The same run file therefore
drops the same activations on any machine of one kind, however the global batch is divided.

Without keys (a model used outside a run) it is ``torch.nn.Dropout``.

Two sources of random bits, both without a global generator: on CPUs a Mersenne twister seeded by the
key, drawn 64 bits at a time (ten times faster than ``bernoulli_``); elsewhere a hash of key and
position in plain tensor operations, which ``torch.compile`` fuses into what surrounds it, and whose
keys are a tensor, so that new keys compile nothing anew.

Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
"""

import math

import torch
from torch import Tensor, nn

from .compiling import outside_compiled_code

GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15  # odd, and far from any multiple of small integers (Knuth, TAOCP 6.4)
MASK_64 = (1 << 64) - 1
BITS_PER_ELEMENT = 16  # probabilities are exact to 1/65536
ELEMENTS_PER_NUMBER = 64 // BITS_PER_ELEMENT


class Dropout(nn.Module):
    """Zeroes elements with ``probability`` in training and scales the rest by ``1 / (1 - probability)``."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.site = 0
        self.keyed = False
        """Whether masks belong to sequences."""
        self.site_keys: tuple[int, ...] | None = None
        """One 64-bit seed per sequence of the batch for this place in the network."""
        self.device_keys: Tensor | None = None
        """The same as int64 [batch] on the device, where that is not a CPU."""

    @property
    def active(self) -> bool:
        return self.training and self.probability > 0.0

    def set_keys(self, keys: tuple[int, ...] | None) -> None:
        """The keys of the next batch's sequences, the same at every place in the network; None forgets them."""
        self.keyed = keys is not None  # compiled code asks this, and would be compiled anew if it saw the keys
        offset = (self.site + 1) * GOLDEN_RATIO_64
        self.site_keys = None if keys is None else tuple((key + offset) & MASK_64 for key in keys)
        self.device_keys = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [batch, ...], returned with the same shape."""
        if not self.active:
            return x
        if not self.keyed:
            return nn.functional.dropout(x, self.probability)
        return torch.where(self.keep_mask(x), x / (1.0 - self.probability), 0.0)

    def keep_mask(self, x: Tensor) -> Tensor:
        """What to keep of ``x`` [batch, ...]: booleans of its shape, row ``b`` drawn from the key of sequence ``b``."""
        numbers = -(-math.prod(x.shape[1:]) // ELEMENTS_PER_NUMBER)
        if self.device_keys is None:
            bits = random_numbers(self, numbers, x)
        else:
            bits = hashed_numbers(self.device_keys, numbers)
        lanes = _lanes(bits)[:, : math.prod(x.shape[1:])]
        threshold = round((1.0 - self.probability) * 2**BITS_PER_ELEMENT) - 2 ** (BITS_PER_ELEMENT - 1)
        return (lanes < threshold).view(x.shape)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def number_dropout_sites(model: nn.Module) -> None:
    """Gives every dropout of a model its own site number, in the order of its modules."""
    for site, module in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        module.site = site


def set_sequence_keys(model: nn.Module, keys: tuple[int, ...] | None) -> None:
    """Tells every dropout which sequences the next batch holds, one 64-bit key each; None forgets them."""
    dropouts = [m for m in model.modules() if isinstance(m, Dropout) and m.probability > 0.0]
    for dropout in dropouts:
        dropout.set_keys(keys)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "cpu" and keys is not None and dropouts:
        put_keys_on_device(dropouts, device)


def put_keys_on_device(dropouts: list[Dropout], device: torch.device | str) -> None:
    """Copies the keys of all places to the device at once, without waiting for it."""
    table = torch.tensor([[_signed(key) for key in dropout.site_keys or ()] for dropout in dropouts])
    if torch.device(device).type == "cuda":
        table = table.pin_memory()
    for dropout, row in zip(dropouts, table.to(device, non_blocking=True), strict=True):
        dropout.device_keys = row


@outside_compiled_code
def random_numbers(dropout: Dropout, count: int, x: Tensor) -> Tensor:
    """64 random bits each, int64 [batch, count], from a generator seeded by each sequence's key."""
    keys = dropout.site_keys or ()
    if len(keys) != x.shape[0]:
        raise ValueError(f"{len(keys)} dropout keys for a batch of {x.shape[0]} sequences")
    numbers = torch.empty(x.shape[0], count, dtype=torch.int64)
    generator = torch.Generator()
    for row, key in zip(numbers, keys, strict=True):
        generator.manual_seed(key)
        row.random_(-(2**63), None, generator=generator)
    return numbers


def hashed_numbers(keys: Tensor, count: int) -> Tensor:
    """64 random bits each, int64 [batch, count]: the n-th output of SplitMix64 from each key.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", figure 17,
    with the constants of its public reference implementation (Vigna).
    """
    counter = torch.arange(1, count + 1, device=keys.device)
    z = keys[:, None] + counter * _signed(GOLDEN_RATIO_64)
    z = (z ^ _shifted_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted_right(z, 31)


def _lanes(bits: Tensor) -> Tensor:
    """Four signed 16-bit numbers from each of 64 bits, lowest first: [batch, n] -> [batch, 4 n]."""
    if not torch.compiler.is_compiling():
        return bits.view(torch.int16)
    shifts = torch.arange(0, 64, BITS_PER_ELEMENT, device=bits.device)  # the compiler of torch 2.13 views wrongly
    lanes = (bits[:, :, None] >> shifts) & 0xFFFF
    return torch.where(lanes >= 0x8000, lanes - 0x10000, lanes).flatten(1)


def _shifted_right(z: Tensor, bits: int) -> Tensor:
    """Zeros come in from the left, as for an unsigned number."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
