"""Faster products of a few rows with large matrices, on CPUs.

Generating one token for each of a few texts multiplies a matrix of few rows by each weight matrix. The
memory bandwidth limits the speed, if the layout of the weights suits the number of rows. torch's own layout
is slower in fp32. Here each matrix is copied once, when it is first used, into oneDNN's layout.
``benchmarks/generate.py`` prints the gain.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from fromscratch.models.layers import LinearHead, soft_cap

MAX_ROWS = 32
MIN_STEPS = 16  # fewer products gain less than one copy costs
Model = TypeVar("Model", bound=nn.Module)


def packing_pays(weight: Tensor, *, rows: int, steps: int) -> bool:
    """Returns whether packing is faster for this number of rows and steps, and this torch supports it."""
    is_cpu_fp32 = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_cpu_fp32 and rows <= MAX_ROWS and steps >= MIN_STEPS and torch.backends.mkldnn.is_available()


def with_packed_weights(model: Model, *, rows: int) -> Model:
    """Returns a copy of the module tree with the same parameters, whose linear layers use packed weights.

    Results are equal up to fp32 rounding. It is fastest for ``rows`` rows. The weights must not change while
    it is used.
    """
    return _copy_tree(model, rows, {})


def _copy_tree(module: Model, rows: int, done: dict[nn.Module, nn.Module]) -> Model:
    if module not in done:
        copied = copy.copy(module)
        done[module] = copied
        copied._modules = {name: child and _copy_tree(child, rows, done) for name, child in module._modules.items()}
        if isinstance(module, nn.Linear) and type(module).forward in (nn.Linear.forward, LinearHead.forward):
            object.__setattr__(copied, "forward", _PackedProduct(module, rows))
    return done[module]  # type: ignore[return-value]


class _PackedProduct:
    """Replaces the ``forward`` of a linear layer."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        self._weight = layer.weight
        self._bias = layer.bias
        self._rows = rows
        self._logit_cap = layer.logit_cap if isinstance(layer, LinearHead) else None
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, self._rows)
        product = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return soft_cap(product, self._logit_cap)
