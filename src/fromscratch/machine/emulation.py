"""Computes 16-bit matrix products in fp32 on processors without 16-bit instructions.

Without such instructions torch multiplies 16-bit matrices element by element, up to a hundred times
slower than fp32. Products of 16-bit numbers are exact in fp32, and every device sums them in fp32.
Multiplying fp32 matrices and rounding the result once therefore gives the same result as a device with
16-bit instructions, up to summation order, at the speed of fp32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fromscratch.models import mixture

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
        *(getattr(getattr(torch.ops, mixture.OPERATORS), name) for name in ("expert_products", "matrix_gradients")),
    }
)
"""All matrix products of forward passes, backward passes and inference; each has one result."""


class EmulatedProducts(TorchDispatchMode):
    """Context in which matrix products of 16-bit CPU tensors are computed in fp32 and rounded once."""

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
    result = product(*tree_map(_to_fp32, args), **tree_map(_to_fp32, kwargs))
    return result.to(dtype) if out is None else out.copy_(result)


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF_TYPES else value


def needs_emulation(kind: str, device: torch.device) -> bool:
    """Whether a device has no fast matrix products of a precision (``bf16``, ``fp16``)."""
    return device.type == "cpu" and kind in ("bf16", "fp16") and not _has_instructions(kind)


def _has_instructions(kind: str) -> bool:
    """Whether torch's CPU library multiplies 16-bit matrices natively on this processor."""
    if kind == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
