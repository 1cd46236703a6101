"""The objective: what a model is trained on and how it is scored.

The loop, the step, evaluation and ``bench`` know this interface and nothing of any one objective. A new
one (instruction tuning, classification, a recurrent model) is one class here beside ``next_token.py``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fromscratch.machine.precision import Precision
from fromscratch.processes.world import ALONE, World

Carry = dict[str, Tensor]
"""State that a model carries from one batch to the next, by name. Row i of every tensor belongs to sequence i.

A recurrent model's hidden state is one. Models without such state have an empty carry.
"""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the model together."""

    inputs: Tensor
    """Token ids [batch, time]."""
    targets: Tensor
    """What is to be predicted, in the shape that the objective's loss needs: [batch, time] or [batch]."""
    sequence_keys: tuple[int, ...]
    """One random seed per sequence, for dropout."""
    kernel_key: tuple[int, int] | None = None
    """For dropout inside CUDA kernels: a seed of the step, and the index in the global batch of the first sequence."""
    begins_text: bool = False
    """Whether the sequences begin texts: the carry before them is the initial one. The same in a whole global batch."""


class LossSum(NamedTuple):
    """The loss of a micro-batch as a sum, so that any division of a global batch has the same mean."""

    total: Tensor
    """Sum of the losses of all targets that count, 0-d, nats."""
    num_targets: int | Tensor
    """Number of targets that count. An int where that is every target, else a 0-d tensor on the device."""
    carry: Carry = {}  # noqa: RUF012 (never changed)
    """The carry after these sequences."""
    auxiliary: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)
    """The model's auxiliary losses by name, each as a sum over the same targets, 0-d. No part of ``total``."""
    penalty: Tensor | float = 0.0
    """The auxiliary losses times their coefficients."""

    @property
    def objective(self) -> Tensor:
        """What training minimises, as a sum."""
        return self.total + self.penalty if self.auxiliary else self.total


Loss = Callable[[Any, MicroBatch, Carry], LossSum]
"""Scores a micro-batch with a model that the objective knows, given the carry of its sequences.

This is what ``torch.compile`` compiles.
"""


class Batches(Protocol):
    """The data of a run: position is a function of the step alone."""

    def targets_in(self, step: int) -> int:
        """Targets in the global batch of a step, those that do not count included."""

    @property
    def micro_batch(self) -> int:
        """Maximum number of sequences in one micro-batch."""

    @property
    def max_steps(self) -> int:
        """Number of global batches in the data."""

    def num_micro_batches(self, step: int) -> int:
        """Micro-batches in this process's shard of the global batch of a step."""

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Yields this process's shard of the global batch of a step, on the device."""

    def smaller(self) -> "Batches | None":
        """The same global batches in micro-batches of half the size; None where a micro-batch is one sequence."""


@dataclass(frozen=True)
class Runtime:
    """The machine's part of a run. It changes the speed, never a result beyond rounding."""

    device: torch.device
    micro_batch: int
    """Maximum number of sequences in one forward pass of training."""
    precision: Precision
    world: World = field(default=ALONE)


class Objective(Protocol):
    """What is trained on and how it is scored."""

    @property
    def identity(self) -> dict[str, Any]:
        """Values of run-file keys by which the run is identified, such as ``data.store`` by its content."""

    @property
    def tokens_per_step(self) -> int:
        """Targets in one global batch; after a batch ramp where there is one."""

    @property
    def is_evaluated(self) -> bool:
        """Whether there is held-out data."""

    def notices(self) -> list[str]:
        """What the user should know of the training data before the run begins."""

    def batches(self, runtime: Runtime) -> Batches:
        """The training data, divided for this process."""

    def loss(self, model: Any, batch: MicroBatch, carry: Carry) -> LossSum:
        """Scores a micro-batch."""

    def initial_carry(self, model: Any, num_sequences: int) -> Carry:
        """The carry before the first step, on the model's device; empty for a model without one."""

    def evaluate(self, model: Any, runtime: Runtime, stop: Callable[[], bool]) -> float | None:
        """Returns the mean held-out loss, or None where ``stop`` interrupted. The same value in every process."""

    def sample(self, model: Any) -> list[str]:
        """Texts that show what the model has learned; drawn from random numbers of their own."""
