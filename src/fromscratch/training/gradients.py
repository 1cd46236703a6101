"""Between backward and step: the norm, whether it is finite, and clipping.

Everything stays on the device: a decision that waited for a number would stall the device at every
step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, as a 0-d tensor; not finite where any element is not."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


class Clip(Protocol):
    """Limits gradients in place."""

    def __call__(self, gradients: list[Tensor], norm: Tensor) -> Tensor:
        """Returns a 0-d boolean tensor: whether anything was limited."""


@dataclass(frozen=True)
class NoClip:
    """Leaves gradients as they are."""

    def __call__(self, gradients: list[Tensor], norm: Tensor) -> Tensor:
        return torch.zeros_like(norm, dtype=torch.bool)


@dataclass(frozen=True)
class ClipByNorm:
    """Scales all gradients by ``max_norm / norm`` when that is below one (Pascanu et al. 2013)."""

    max_norm: float

    def __call__(self, gradients: list[Tensor], norm: Tensor) -> Tensor:
        factor = (self.max_norm / norm).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        return factor < 1.0


@dataclass(frozen=True)
class ClipByValue:
    """Limits every element to plus or minus ``max_value``."""

    max_value: float

    def __call__(self, gradients: list[Tensor], norm: Tensor) -> Tensor:
        largest = torch.stack(torch._foreach_norm(gradients, float("inf"))).max()
        torch._foreach_clamp_min_(gradients, -self.max_value)
        torch._foreach_clamp_max_(gradients, self.max_value)
        return largest > self.max_value


class Outcome(IntEnum):
    """What a step's gradients were like."""

    NORMAL = 0
    CLIPPED = 1
    INFINITE_NORM = 2
    """Every element is finite, but their norm is not: its squares overflow fp32."""
    NONFINITE = 3
    """Some element is NaN or infinite."""
    SCALE_OVERFLOW = 4
    """fp16: the scaled gradients overflowed though the loss is finite; the scale falls, the model is well."""

    @property
    def label(self) -> str:
        """As records spell it."""
        return self.name.lower().replace("_", "-")


def classify(gradients: list[Tensor], norm: Tensor, *, scaled: bool, loss: Tensor) -> Tensor:
    """The ``Outcome`` before clipping as a 0-d integer tensor, without waiting for the device.

    Args:
        scaled: whether they were computed from a scaled loss (fp16).
        loss: of the step; not finite itself where the trouble is the model's.
    """
    if norm.device.type == "cpu" and torch.isfinite(norm):  # there is no queue to wait for, and the rest is slow
        return torch.zeros((), dtype=torch.int64)
    elements_finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf"))).sum())
    overflow = torch.isfinite(loss) if scaled else torch.zeros_like(elements_finite)
    outcome = torch.where(overflow, int(Outcome.SCALE_OVERFLOW), int(Outcome.NONFINITE))
    outcome = torch.where(elements_finite, int(Outcome.INFINITE_NORM), outcome)
    return torch.where(torch.isfinite(norm), int(Outcome.NORMAL), outcome)


def gradients_of(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients there are."""
    return [p.grad for p in parameters if p.grad is not None]
