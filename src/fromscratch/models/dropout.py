"""Dropout whose masks belong to the sequence, not to the batch it travels in.

Ordinary dropout draws one stream of random numbers for a whole batch, so another micro-batch size,
another number of processes or a resume at another point gives other masks and another model. Here
each sequence has a key (made from the run's seed, the step and the sequence's index in the data),
and a mask depends on that key and on the place in the network alone. The same run file therefore
drops the same activations on any machine of one kind, however the global batch is divided.

Without keys (a model used outside a run) it is ``torch.nn.Dropout``.

Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
"""

import torch
from torch import Tensor, nn

GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15  # odd, and far from any multiple of small integers (Knuth, TAOCP 6.4)
MASK_64 = (1 << 64) - 1


class Dropout(nn.Module):
    """Zeroes elements with ``probability`` in training and scales the rest by ``1 / (1 - probability)``."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.site = 0
        self.sequence_keys: tuple[int, ...] | None = None

    @property
    def active(self) -> bool:
        return self.training and self.probability > 0.0

    def site_keys(self) -> tuple[int, ...] | None:
        """One 64-bit seed per sequence of the batch for this place in the network, or None."""
        if self.sequence_keys is None:
            return None
        return tuple((key + (self.site + 1) * GOLDEN_RATIO_64) & MASK_64 for key in self.sequence_keys)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [batch, ...], returned with the same shape."""
        if not self.active:
            return x
        keys = self.site_keys()
        if keys is None:
            return nn.functional.dropout(x, self.probability)
        return x * self.keep_mask(x, keys)

    def keep_mask(self, x: Tensor, keys: tuple[int, ...]) -> Tensor:
        """Zeros and ``1 / (1 - probability)`` in the shape of ``x``, row ``b`` drawn from ``keys[b]``."""
        if len(keys) != x.shape[0]:
            raise ValueError(f"{len(keys)} dropout keys for a batch of {x.shape[0]} sequences")
        mask = torch.empty_like(x, requires_grad=False)
        generator = torch.Generator(device=x.device)
        for row, key in zip(mask, keys, strict=True):
            generator.manual_seed(key)
            row.bernoulli_(1.0 - self.probability, generator=generator)
        return mask.mul_(1.0 / (1.0 - self.probability))

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def number_dropout_sites(model: nn.Module) -> None:
    """Gives every dropout of a model its own site number, in the order of its modules."""
    for site, module in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        module.site = site


def set_sequence_keys(model: nn.Module, keys: tuple[int, ...] | None) -> None:
    """Tells every dropout which sequences the next batch holds, one 64-bit key each; None forgets them."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.sequence_keys = keys
