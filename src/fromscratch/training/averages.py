"""Averages of the weights, kept beside them: an exponential one, and the mean of the run's last steps.

They read the weights after every step and change nothing that training reads. Sources: Polyak and Juditsky 1992,
"Acceleration of Stochastic Approximation by Averaging"; Izmailov et al. 2018, "Averaging Weights Leads to Wider
Optima and Better Generalization".
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fromscratch.formats.checkpoints import RAW, TrainingState, average_file
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.formats.weights import fill_tensors

LocalParts = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Average(Protocol):
    """A rule: which weights are averaged, and with which share the newest ones enter."""

    def begins_after(self, num_steps: int) -> int:
        """Number of steps, of a run of ``num_steps``, whose weights are left out."""

    def share(self, count: int) -> float:
        """Share of the newest weights in the average of ``count`` weights; 1 for the first."""


@dataclass(frozen=True)
class Exponential:
    """Weights of k steps ago count ``decay ** k``; their shares sum to 1, so the first weights have no extra share."""

    decay: float

    def begins_after(self, num_steps: int) -> int:
        return 0

    def share(self, count: int) -> float:
        return (1.0 - self.decay) / (1.0 - self.decay**count)


@dataclass(frozen=True)
class Tail:
    """The mean over the last ``fraction`` of the run's steps, at least one."""

    fraction: float

    def begins_after(self, num_steps: int) -> int:
        return num_steps - max(1, round(self.fraction * num_steps))

    def share(self, count: int) -> float:
        return 1.0 / count


@dataclass(frozen=True)
class WeightAverages:
    """The averages of a run. How many weights each has averaged is in ``TrainingState.averaged``."""

    rules: dict[str, Average] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The trained weights by name; the tensors that training changes."""
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """By name of the average: a tensor like each weight. Meaningless until the first step is averaged."""

    @classmethod
    def of(cls, rules: dict[str, Average], named_parameters: Iterable[tuple[str, nn.Parameter]]) -> "WeightAverages":
        """Allocates an average by each rule, so that none can run out of memory later."""
        weights = {name: parameter.detach() for name, parameter in named_parameters} if rules else {}
        return cls(rules, weights, {name: {key: w.clone() for key, w in weights.items()} for name in rules})

    @torch.no_grad()
    def update(self, state: TrainingState, num_steps: int) -> None:
        """Takes in the weights after the step that ``state`` counts, without waiting for the device."""
        counts = {}
        for name, rule in self.rules.items():
            if state.step <= rule.begins_after(num_steps):
                continue
            counts[name] = count = state.averaged.get(name, 0) + 1
            averages, weights = list(self.averages[name].values()), list(self.weights.values())
            if count == 1:
                torch._foreach_copy_(averages, weights)
            else:
                torch._foreach_lerp_(averages, weights, rule.share(count))
        state.averaged = counts

    def add(self, name: str, weight: nn.Parameter, *, like: str) -> None:
        """Takes in a new weight that has been the same as another until now."""
        if self.rules:
            self.weights[name] = weight.detach()
        for tensors in self.averages.values():
            tensors[name] = tensors[like].clone()

    def begun(self, state: TrainingState) -> dict[str, dict[str, Tensor]]:
        """The averages that hold something."""
        return {name: tensors for name, tensors in self.averages.items() if state.averaged.get(name)}

    @contextmanager
    def in_place_of_weights(self, name: str) -> Iterator[None]:
        """Inside, the model has the weights of an average. They are exchanged, so that nothing is rounded."""
        self._exchange(name)
        try:
            yield
        finally:
            self._exchange(name)

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        for key, average in self.averages.get(name, {}).items() if name != RAW else ():
            kept = average.clone()
            average.copy_(self.weights[key])
            self.weights[key].copy_(kept)

    def load(self, checkpoint: Path, state: TrainingState, local_parts: LocalParts) -> None:
        """Puts back what a checkpoint holds. Raises DataError where it is of another model.

        Args:
            local_parts: from whole tensors by name to what this process holds of them.
        """
        for name, tensors in self.begun(state).items():
            path = checkpoint / average_file(name)
            fill_tensors(tensors, local_parts(read_tensors(path)), path)
