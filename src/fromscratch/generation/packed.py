"""Faster products of a few rows with large matrices, on processors.

One token for each of a few texts is a matrix of few rows, times each weight matrix. What counts then
is to read the weights once, at the speed of the memory, and for that their layout must suit the
number of rows. ``torch.nn.functional.linear`` takes them as training left them, and in fp32 is a
third slower than need be for one row and several times for two to sixteen. Here each matrix is copied
once, when it is first used: transposed for one row, in oneDNN's own layout for several. The figures
are what ``benchmarks/generate.py`` prints.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MOST_ROWS = 32
FEWEST_STEPS = 16  # so many products must gain what one copy costs


class PackedProducts(TorchFunctionMode):
    """Inside it, linear layers use copies of their weights: the same numbers up to the rounding of fp32.

    The weights must not change while it is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[int, Tensor] = {}

    @staticmethod
    def pays(weight: Tensor, *, rows: int, steps: int) -> bool:
        """Whether it is worth it for so many rows and steps, and possible with this torch."""
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        return here and rows <= MOST_ROWS and steps >= FEWEST_STEPS and torch.backends.mkldnn.is_available()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and args[0].numel() // args[0].shape[-1] <= MOST_ROWS:
            return self._linear(*args)
        return func(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.numel() // x.shape[-1]
        packed = self._packed.get(id(weight))
        if packed is None:
            packed = weight.T.contiguous() if rows == 1 else torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            self._packed[id(weight)] = packed
        if rows > 1:
            return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        flat = x.view(1, -1)
        product = flat @ packed if bias is None else torch.addmm(bias, flat, packed)
        return product.view(*x.shape[:-1], -1)
