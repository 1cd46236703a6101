"""Policies for steps whose gradients are not finite: the kinds of ``train.nonfinite``.

A policy says on the device, for all processes alike, which steps change nothing (``holds``). Later, when
the outcome is known on the host, it may end the run (``check``). An overflow of fp16's loss scale is not
the model's fault: such a step changes nothing under any policy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fromscratch.errors import DivergedError
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.randomness import derive_seed
from fromscratch.training.gradients import Outcome


class NonfinitePolicy:
    """Decides what happens to steps whose gradients are not finite."""

    max_in_a_row: int

    def holds(self, outcome: Tensor) -> Tensor:
        """Whether a step of this ``Outcome`` changes neither weights nor optimiser state, as a 0-d boolean."""
        return outcome >= Outcome.INFINITE_NORM

    def after(self, optimizer: CompositeOptimizer, outcome: Tensor, *, spike: Tensor, step: int, seed: int) -> None:
        """Called after the optimiser's step, held or not."""

    def check(self, *, step: int, in_a_row: int) -> None:
        """Raises DivergedError to end the run."""
        if in_a_row >= self.max_in_a_row:
            raise DivergedError(
                f"diverged at step {step}: {in_a_row} steps in a row had gradients that were not finite "
                "(train.nonfinite.max_in_a_row); lower the learning rate, clip gradients, or use bf16 or fp32"
            )


@dataclass(frozen=True)
class Skip(NonfinitePolicy):
    """Skips the update; weights and optimiser state are unchanged."""

    max_in_a_row: int


@dataclass(frozen=True)
class Raise(NonfinitePolicy):
    """Skips the update and ends the run."""

    def check(self, *, step: int, in_a_row: int) -> None:
        if in_a_row:
            raise DivergedError(f"diverged at step {step}: gradients were not finite (train.nonfinite = 'raise')")


@dataclass(frozen=True)
class RandomStep(NonfinitePolicy):
    """Moves the weights by ``norm`` in a random direction; the optimiser's state is unchanged."""

    norm: float
    max_in_a_row: int

    def after(self, optimizer: CompositeOptimizer, outcome: Tensor, *, spike: Tensor, step: int, seed: int) -> None:
        is_bad = (outcome == Outcome.INFINITE_NORM) | (outcome == Outcome.NONFINITE)
        if bool(is_bad & ~spike):
            generator = torch.Generator().manual_seed(derive_seed(seed, "random-step", step))
            move_randomly(optimizer, self.norm, generator)


@dataclass(frozen=True)
class Apply(NonfinitePolicy):
    """Takes the step as it is."""

    max_in_a_row: int

    def holds(self, outcome: Tensor) -> Tensor:
        return outcome == Outcome.SCALE_OVERFLOW


@torch.no_grad()
def move_randomly(optimizer: CompositeOptimizer, norm: float, generator: torch.Generator) -> None:
    """Adds a random vector of the given Euclidean norm to all parameters together.

    It is drawn on the CPU, so it is the same on every device and in every process.
    """
    directions = [torch.randn(p.shape, generator=generator) for p in optimizer.parameters]
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(directions)))
    for parameter, direction in zip(optimizer.parameters, directions, strict=True):
        parameter.add_((direction * (norm / length)).to(parameter.device))
