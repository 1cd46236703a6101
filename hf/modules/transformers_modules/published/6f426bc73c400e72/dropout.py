"""Dropout with one mask per sequence, independent of the batch that the sequence is in.

Ordinary dropout draws one random stream per batch. Another micro-batch size, another number of processes
or a resume then gives other masks and another model. Here each sequence has a key, made from the run's
seed, the step and the sequence's index in the data. A mask depends only on that key and on the place in
the network. So a run file drops the same activations on every machine with the same kind of device,
however the global batch is divided.

Without keys (a model used outside a run) it is ``torch.nn.Dropout``.

There are two sources of random bits, neither a global generator. On CPUs it is a Mersenne twister seeded
by the key and drawn 64 bits at a time, which is ten times faster than ``bernoulli_``. On other devices it
is a hash of key and position in plain tensor operations, which ``torch.compile`` fuses. The keys are a
tensor there, so new keys cause no recompilation.

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
        """Sets the keys of the next batch's sequences, the same at every place in the network; None removes them."""
        self.keyed = keys is not None  # compiled code reads this flag; reading the keys would recompile it
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
        """Booleans of the shape of ``x`` [batch, ...]; True is kept. Row ``b`` depends on the key of sequence ``b``."""
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
    """Sets the keys of the next batch's sequences in every dropout, 64 bits each; None removes them."""
    dropouts = [m for m in model.modules() if isinstance(m, Dropout) and m.probability > 0.0]
    for dropout in dropouts:
        dropout.set_keys(keys)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "cpu" and keys is not None and dropouts:
        put_keys_on_device(dropouts, device)


def put_keys_on_device(dropouts: list[Dropout], device: torch.device | str) -> None:
    """Copies the keys of all places to the device in one transfer, without waiting for it."""
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
    shifts = torch.arange(0, 64, BITS_PER_ELEMENT, device=bits.device)  # torch 2.13 compiles this view wrongly
    lanes = (bits[:, :, None] >> shifts) & 0xFFFF
    return torch.where(lanes >= 0x8000, lanes - 0x10000, lanes).flatten(1)


def _shifted_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: fills with zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
