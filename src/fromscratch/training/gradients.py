"""Between backward and step: the norm, whether it is finite, clipping, and what a bad step means.

Everything stays on the device: a decision that waited for a number would stall the device at every
step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fromscratch.errors import DivergedError


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


class NonfinitePolicy(Protocol):
    """Decides whether training goes on after steps whose gradients were not finite."""

    def check(self, *, step: int, in_a_row: int) -> None:
        """Raises DivergedError to end the run. The step itself has changed nothing."""


@dataclass(frozen=True)
class SkipNonfinite:
    """Skips them, up to a limit in a row."""

    max_in_a_row: int

    def check(self, *, step: int, in_a_row: int) -> None:
        if in_a_row >= self.max_in_a_row:
            raise DivergedError(
                f"diverged at step {step}: {in_a_row} steps in a row had gradients that were not finite "
                "(train.nonfinite.max_in_a_row); lower the learning rate, clip gradients, or use bf16 or fp32"
            )


@dataclass(frozen=True)
class RaiseNonfinite:
    """Ends the run at the first."""

    def check(self, *, step: int, in_a_row: int) -> None:
        if in_a_row:
            raise DivergedError(f"diverged at step {step}: gradients were not finite (train.nonfinite = 'raise')")


def gradients_of(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients there are."""
    return [p.grad for p in parameters if p.grad is not None]
