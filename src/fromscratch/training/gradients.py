"""Between backward and step: the norm, whether it is finite, and clipping.

Everything stays on the device: reading a number on the host would stall the device in every step.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

WIDE_NORM_DEVICES = {"cuda"}
"""Where norms are computed in fp64, so that no second pass over the gradients is needed (CPUs need it rarely)."""
MAX_NORM = torch.finfo(torch.float32).max ** 0.5
"""Larger norms overflow where they are computed in fp32; the same bound holds in fp64."""


class Gradients:
    """The gradients of a step: the tensors in this process, and norms over all of them wherever they are.

    Args:
        tensors: what this process holds.
        reduce_norm: from this process's norm of an order to that over all processes.
        defers_scale: whether the optimiser divides by ``divisor``, so that ``scale`` need not rewrite the tensors.
    """

    def __init__(
        self,
        tensors: list[Tensor],
        reduce_norm: Callable[[Tensor, float], Tensor] = lambda norm, _order: norm,
        *,
        defers_scale: bool = False,
    ) -> None:
        self.tensors = tensors
        self._reduce_norm = reduce_norm
        self._defers_scale = defers_scale
        self.divisor: Tensor | None = None
        """What the optimiser shall divide the gradients by, 0-d; None where they are as they shall be."""

    @classmethod
    def of(
        cls,
        parameters: Iterable[nn.Parameter],
        reduce_norm: Callable[[Tensor, float], Tensor] = lambda norm, _order: norm,
        *,
        defers_scale: bool = False,
    ) -> "Gradients":
        """The gradients that parameters have."""
        tensors = [p.grad for p in parameters if p.grad is not None and p.grad.numel()]
        return cls(tensors, reduce_norm, defers_scale=defers_scale)

    @cached_property
    def norm(self) -> Tensor:
        """Euclidean norm of all gradients together, 0-d; not finite where an element is not. Before any change."""
        if self._is_wide:
            return torch.where(self._wide_norm < MAX_NORM, self._wide_norm, self._wide_norm * torch.inf).float()
        return self._reduce_norm(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.tensors))), 2.0)

    def scale(self, factor: Tensor) -> None:
        """Multiplies all gradients by a 0-d factor, or lets the optimiser do it."""
        if self._defers_scale:
            self.divisor = 1.0 / factor
        else:
            torch._foreach_mul_(self.tensors, factor)

    def elements_are_finite(self) -> Tensor:
        """Whether every element is finite, 0-d."""
        return torch.isfinite(self._wide_norm if self._is_wide else self.max_element())

    @property
    def _is_wide(self) -> bool:
        return self.tensors[0].device.type in WIDE_NORM_DEVICES

    @cached_property
    def _wide_norm(self) -> Tensor:
        """The norm in fp64, where squares of fp32 numbers do not overflow: one pass tells both what is not finite."""
        norms = torch._foreach_norm(self.tensors, 2, torch.float64)
        return self._reduce_norm(torch.linalg.vector_norm(torch.stack(norms)), 2.0)

    def max_element(self) -> Tensor:
        """The largest absolute value, 0-d; NaN where an element is."""
        return self._reduce_norm(torch.stack(torch._foreach_norm(self.tensors, float("inf"))).max(), float("inf"))


class Clip(Protocol):
    """Limits gradients in place."""

    def __call__(self, gradients: Gradients) -> Tensor:
        """Returns a 0-d boolean tensor: whether anything was limited."""


@dataclass(frozen=True)
class NoClip:
    """Leaves gradients as they are."""

    def __call__(self, gradients: Gradients) -> Tensor:
        return torch.zeros_like(gradients.norm, dtype=torch.bool)


@dataclass(frozen=True)
class ClipByNorm:
    """Scales all gradients by ``max_norm / norm`` when that is below one (Pascanu et al. 2013)."""

    max_norm: float

    def __call__(self, gradients: Gradients) -> Tensor:
        factor = (self.max_norm / gradients.norm).clamp(max=1.0)
        gradients.scale(factor)
        return factor < 1.0


@dataclass(frozen=True)
class ClipByValue:
    """Limits every element to plus or minus ``max_value``."""

    max_value: float

    def __call__(self, gradients: Gradients) -> Tensor:
        largest = gradients.max_element()
        torch._foreach_clamp_min_(gradients.tensors, -self.max_value)
        torch._foreach_clamp_max_(gradients.tensors, self.max_value)
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
    """fp16: the scaled gradients overflowed and the loss is finite. The loss scale falls; the model is sound."""

    @property
    def label(self) -> str:
        """The spelling in records."""
        return self.name.lower().replace("_", "-")


def classify(gradients: Gradients, *, scaled: bool, loss: Tensor) -> Tensor:
    """The ``Outcome`` before clipping as a 0-d integer tensor, without waiting for the device.

    Args:
        scaled: whether the gradients were computed from a scaled loss (fp16).
        loss: the step's loss; it is not finite where the model itself is the cause.
    """
    norm = gradients.norm
    if norm.device.type == "cpu" and torch.isfinite(norm):  # on a CPU nothing is queued, and the rest is slow
        return torch.zeros((), dtype=torch.int64)
    elements_finite = gradients.elements_are_finite()
    overflow = torch.isfinite(loss) if scaled else torch.zeros_like(elements_finite)
    outcome = torch.where(overflow, int(Outcome.SCALE_OVERFLOW), int(Outcome.NONFINITE))
    outcome = torch.where(elements_finite, int(Outcome.INFINITE_NORM), outcome)
    return torch.where(torch.isfinite(norm), int(Outcome.NORMAL), outcome)
