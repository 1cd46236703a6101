"""Faster products of a few rows with large matrices, on processors.

One token for each of a few texts is a matrix of few rows, times each weight matrix. What counts then
is to read the weights once, at the speed of the memory, and for that their layout must suit the
number of rows. ``torch.nn.functional.linear`` takes them as training left them, which is slower in
fp32. Here each matrix is copied once, when it is first used, into oneDNN's own layout. What it is worth,
``benchmarks/generate.py`` prints.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

MOST_ROWS = 32
FEWEST_STEPS = 16  # so many products must gain what one copy costs
Model = TypeVar("Model", bound=nn.Module)


def packing_pays(weight: Tensor, *, rows: int, steps: int) -> bool:
    """Whether it is worth it for so many rows and steps, and possible with this torch."""
    here = weight.device.type == "cpu" and weight.dtype == torch.float32
    return here and rows <= MOST_ROWS and steps >= FEWEST_STEPS and torch.backends.mkldnn.is_available()


def packed_twin(model: Model, *, rows: int) -> Model:
    """A second tree of the same modules and parameters, whose linear layers keep packed copies of their weights.

    It computes the same numbers up to the rounding of fp32, fastest for so many rows. The weights must not
    change while it is used.
    """
    return _twin(model, rows, {})


def _twin(module: Model, rows: int, done: dict[nn.Module, nn.Module]) -> Model:
    if module not in done:
        twin = copy.copy(module)
        done[module] = twin
        twin._modules = {name: child and _twin(child, rows, done) for name, child in module._modules.items()}
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            object.__setattr__(twin, "forward", _PackedProduct(module, rows))
    return done[module]  # type: ignore[return-value]


class _PackedProduct:
    """Stands in for the ``forward`` of a linear layer."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        self._weight = layer.weight
        self._bias = layer.bias
        self._rows = rows
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, self._rows)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
