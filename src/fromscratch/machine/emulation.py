"""16-bit matrix products on processors that have no instructions for them.

Without such instructions torch multiplies 16-bit matrices element by element: up to a hundred times
slower than fp32. The operands are 16-bit numbers either way, their products are exact in fp32 and are summed
in fp32 on every device; so multiplying them as fp32 matrices and rounding the result once gives what
a device with the instructions gives, to summation order, at the speed of fp32. What a run file says
about precision is therefore true on any processor.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

HALF_TYPES = (torch.bfloat16, torch.float16)
PRODUCTS = frozenset(
    {
        torch.ops.aten.mm,
        torch.ops.aten.bmm,
        torch.ops.aten.addmm,
        torch.ops.aten.baddbmm,
        torch.ops.aten.addbmm,
        torch.ops.aten.mv,
        torch.ops.aten.addmv,
        torch.ops.aten.dot,
        torch.ops.aten.linear,
        torch.ops.aten.matmul,
    }
)
"""All of one result; forward passes, backward passes and inference use no others."""


class EmulatedProducts(TorchDispatchMode):
    """Inside, matrix products of 16-bit tensors on the CPU are computed in fp32 and rounded once."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs)
        dtype = next((t.dtype for t in args if isinstance(t, Tensor)), None)
        if dtype not in HALF_TYPES:
            return func(*args, **kwargs)
        return _in_fp32(func.overloadpacket, args, kwargs, dtype)


def _in_fp32(product: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
    out = kwargs.pop("out", None)
    result = product(*tree_map(_widened, args), **tree_map(_widened, kwargs))
    return result.to(dtype) if out is None else out.copy_(result)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF_TYPES else value


def needs_emulation(kind: str, device: torch.device) -> bool:
    """Whether products of a precision (``bf16``, ``fp16``) are hopelessly slow on a device by themselves."""
    return device.type == "cpu" and kind in ("bf16", "fp16") and not _has_instructions(kind)


def _has_instructions(kind: str) -> bool:
    """Whether torch's CPU library multiplies 16-bit matrices natively on this processor."""
    if kind == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
