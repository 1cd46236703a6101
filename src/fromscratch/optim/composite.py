"""One or several torch optimisers that act as one: scheduled, stepped, held back, saved and resumed together.

A run may train matrices with one optimiser and everything else with another. The training step sees one
object. Each parameter belongs to exactly one of the optimisers.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fromscratch.errors import DataError

NamedParameters = Iterable[tuple[str, nn.Parameter]]
BASE_RATE = "initial_lr"  # the key under which torch's own schedulers keep a group's rate


class CompositeOptimizer:
    """Optimisers over disjoint parameters.

    The learning rate that each parameter group was built with is its base rate; a schedule multiplies it.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        for group in self.param_groups:
            group.setdefault(BASE_RATE, group["lr"])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimisers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is trained."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """The state of each parameter that has one. A copy of the mapping, not of the tensors."""
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def set_rate_factor(self, factor: float) -> None:
        """Sets the learning rate of every group to its base rate times ``factor``."""
        for group in self.param_groups:
            group["lr"] = group[BASE_RATE] * factor

    @property
    def takes_divisor(self) -> bool:
        """Whether every optimiser can divide the gradients itself."""
        return all(map(_takes_flag, self.optimizers))

    def step_unless(self, hold: Tensor, *, divisor: Tensor | None = None) -> None:
        """Updates the weights. Where the 0-d boolean ``hold`` is true, weights and state stay unchanged.

        ``divisor``, 0-d, divides the gradients inside the optimisers; see ``takes_divisor``.

        Optimisers that support it take the flag as a tensor (``found_inf``, made for loss scaling), so the
        host does not wait for the device. The others need the flag on the host. Multiplying the update by
        zero would not do: 0 x NaN is NaN.
        """
        waits = not all(map(_takes_flag, self.optimizers))
        held = bool(hold) if waits else False
        for optimizer in self.optimizers:
            if _takes_flag(optimizer):
                optimizer.found_inf = hold.float()  # type: ignore[attr-defined]
                optimizer.grad_scale = divisor  # type: ignore[attr-defined]
                try:
                    optimizer.step()
                finally:
                    del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
            elif not held:
                optimizer.step()

    def zero_grad(self) -> None:
        """Sets all gradients to None."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def without_state(self) -> Iterator[torch.optim.Optimizer]:
        """The optimisers that have no state yet and can create it in a held step.

        The others create theirs in their first step.
        """
        return (optimizer for optimizer in self.optimizers if not optimizer.state and _takes_flag(optimizer))

    @contextmanager
    def temporary_state(self) -> Iterator[None]:
        """Inside of the block, optimisers that create their state in their first step have one of the same size.

        It comes from a step at a rate of zero. All gradients must be there, and zero; the weights stay as they are.
        """
        others = [one for one in self.optimizers if not one.state and not _takes_flag(one)]
        self.set_rate_factor(0.0)
        try:
            for one in others:
                one.step()
            yield
        finally:
            for one in others:
                one.state.clear()
            self.set_rate_factor(1.0)

    def state_tensors(self, named_parameters: NamedParameters) -> dict[str, Tensor]:
        """The state as ``<parameter>/<key>``. An absent tensor (None) is left out.

        Raises:
            TypeError: a state value is neither a tensor nor None, so a checkpoint could not hold it.
        """
        state, found = self.state, {}
        for name, parameter in named_parameters:
            for key, value in state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"{name}/{key}"] = value.detach().contiguous()
                elif value is not None:
                    raise TypeError(f"optimiser state {name}/{key} is {type(value).__name__}; it must be a tensor")
        return found

    def load_state_tensors(self, named_parameters: NamedParameters, tensors: dict[str, Tensor], where: str) -> None:
        """Puts back what ``state_tensors`` returned. Raises DataError for state of unknown parameters."""
        owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            parameter_name, _, key = name.rpartition("/")
            by_parameter.setdefault(parameter_name, {})[key] = tensor
        for name, parameter in named_parameters:
            if name in by_parameter and id(parameter) in owners:
                state = {key: tensor.to(parameter.device) for key, tensor in by_parameter.pop(name).items()}
                owners[id(parameter)].state[parameter] = state
        if by_parameter:
            raise DataError(f"{where}: state of unknown parameters {', '.join(sorted(by_parameter))}")


def as_composite(built: torch.optim.Optimizer | CompositeOptimizer) -> CompositeOptimizer:
    """What an optimiser kind built, as one object."""
    return built if isinstance(built, CompositeOptimizer) else CompositeOptimizer(built)


def _takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser reads ``found_inf`` on the device."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
