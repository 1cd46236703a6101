"""What becomes of a step whose gradients are not finite: the fillings of ``train.nonfinite``.

A policy takes the step (``update``), on the device and for all processes alike, and later, when its
outcome is known, may end the run (``check``). An overflow of fp16's loss scale is no trouble of the
model's: such a step never moves anything, whatever the policy.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fromscratch.errors import DivergedError
from fromscratch.randomness import derive_seed
from fromscratch.training.gradients import Outcome


class NonfinitePolicy(Protocol):
    """Takes steps whose gradients may not be finite."""

    def update(self, optimizer: torch.optim.Optimizer, outcome: Tensor, *, hold: Tensor, step: int, seed: int) -> None:
        """Changes the weights, or not.

        Args:
            outcome: of the step, an ``Outcome`` as a 0-d tensor.
            hold: whether the step must change nothing for another reason.
        """

    def check(self, *, step: int, in_a_row: int) -> None:
        """Raises DivergedError to end the run."""


@dataclass(frozen=True)
class Skip:
    """Nothing moves."""

    max_in_a_row: int

    def update(self, optimizer: torch.optim.Optimizer, outcome: Tensor, *, hold: Tensor, step: int, seed: int) -> None:
        step_unless(hold | (outcome >= Outcome.INFINITE_NORM), optimizer)

    def check(self, *, step: int, in_a_row: int) -> None:
        _end_after(self.max_in_a_row, step, in_a_row)


@dataclass(frozen=True)
class Raise:
    """Nothing moves, and the run ends."""

    def update(self, optimizer: torch.optim.Optimizer, outcome: Tensor, *, hold: Tensor, step: int, seed: int) -> None:
        step_unless(hold | (outcome >= Outcome.INFINITE_NORM), optimizer)

    def check(self, *, step: int, in_a_row: int) -> None:
        if in_a_row:
            raise DivergedError(f"diverged at step {step}: gradients were not finite (train.nonfinite = 'raise')")


@dataclass(frozen=True)
class RandomStep:
    """The weights move by ``norm`` in a random direction; the optimiser's moments stay."""

    norm: float
    max_in_a_row: int

    def update(self, optimizer: torch.optim.Optimizer, outcome: Tensor, *, hold: Tensor, step: int, seed: int) -> None:
        is_bad = (outcome == Outcome.INFINITE_NORM) | (outcome == Outcome.NONFINITE)
        if bool(is_bad & ~hold):
            generator = torch.Generator().manual_seed(derive_seed(seed, "random-step", step))
            move_randomly(optimizer, self.norm, generator)
        else:
            step_unless(hold | (outcome == Outcome.SCALE_OVERFLOW), optimizer)

    def check(self, *, step: int, in_a_row: int) -> None:
        _end_after(self.max_in_a_row, step, in_a_row)


@dataclass(frozen=True)
class Apply:
    """The step is taken as it is."""

    max_in_a_row: int

    def update(self, optimizer: torch.optim.Optimizer, outcome: Tensor, *, hold: Tensor, step: int, seed: int) -> None:
        step_unless(hold | (outcome == Outcome.SCALE_OVERFLOW), optimizer)

    def check(self, *, step: int, in_a_row: int) -> None:
        _end_after(self.max_in_a_row, step, in_a_row)


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Updates the weights, or changes neither weights nor optimiser state where ``bad`` is true.

    Fused optimisers take the flag as a tensor (``found_inf``, made for loss scaling), so the device
    is not waited for; others are asked first. Multiplying the update by zero would not do: 0 x NaN
    is NaN.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif not bad.item():
        optimizer.step()


@torch.no_grad()
def move_randomly(optimizer: torch.optim.Optimizer, norm: float, generator: torch.Generator) -> None:
    """Adds a random vector of the given Euclidean norm to all parameters together.

    Drawn on the CPU, so that it is the same on every device and in every process.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    directions = [torch.randn(p.shape, generator=generator) for p in parameters]
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(directions)))
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.add_((direction * (norm / length)).to(parameter.device))


def _end_after(most: int, step: int, in_a_row: int) -> None:
    if in_a_row >= most:
        raise DivergedError(
            f"diverged at step {step}: {in_a_row} steps in a row had gradients that were not finite "
            "(train.nonfinite.max_in_a_row); lower the learning rate, clip gradients, or use bf16 or fp32"
        )
