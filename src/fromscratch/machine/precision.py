"""Numeric precision of training: autocast, tf32, and the loss scale of fp16."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fromscratch.errors import UsageError
from fromscratch.machine.emulation import EmulatedProducts, needs_emulation

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """One of fp32, tf32, bf16 and fp16. Weights, gradients and optimiser state stay fp32.

    tf32 rounds the inputs of fp32 matrix products to 10 mantissa bits, on devices that support it.
    fp16 multiplies the loss by a scale, which decreases if a gradient overflows and otherwise grows
    (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).

    Args:
        is_sharded: whether each process has a part of the gradients: an overflow in any lowers the scale of all.
    """

    def __init__(self, kind: str, device: torch.device, *, is_sharded: bool = False) -> None:
        self.kind = kind
        self._device_type = device.type
        self._dtype = AUTOCAST_DTYPES.get(kind)
        self.emulated = needs_emulation(kind, device)
        """Whether 16-bit products are computed in fp32, because this processor has no 16-bit instructions."""
        self.scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")
        if is_sharded:
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

            self.scaler = ShardedGradScaler(device.type, enabled=kind == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the inputs of matrix products."""
        return self._dtype or torch.float32

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Context in which torch computes in this precision. Restores the previous setting on exit."""
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype is not None), self.products():
            yield

    def backward(self, loss: Tensor) -> None:
        """Computes gradients of the scaled loss. The graph holds autocast's types; ``products`` sets the rest."""
        scaled: Tensor = self.scaler.scale(loss)
        with self.products():
            scaled.backward()

    @contextmanager
    def products(self) -> Iterator[None]:
        """Context in which matrix products use tf32 units or fp32 emulation, if this precision needs it."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.kind == "tf32" else "highest")
        emulation: AbstractContextManager[object] = nullcontext()
        if self.emulated:
            emulation = EmulatedProducts()  # type: ignore[no-untyped-call]
        try:
            with emulation:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the loss scale; does nothing unless the precision is fp16."""
        self.scaler.unscale_(optimizer)

    def update_scale(self) -> None:
        """Updates the loss scale: ``unscale`` recorded whether a gradient overflowed."""
        self.scaler.update()

    def loss_scale(self) -> Tensor | float:
        """Returns the loss scale of the next step, on the device; infinity if the precision has none."""
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None
        return float("inf") if scale is None else scale.clone()

    def state(self) -> dict[str, Any]:
        """Returns the state that a resume needs; empty unless the precision is fp16."""
        return dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores a result of ``state``."""
        if state:
            self.scaler.load_state_dict(state)


def check_precision(name: str) -> None:
    """Raises UsageError for an unknown precision."""
    if name not in ("fp32", "tf32", "bf16", "fp16"):
        raise UsageError(f"--precision {name}: must be fp32, tf32, bf16 or fp16")


def fast_16bit_precision(device: torch.device) -> str:
    """Returns ``bf16`` if the device computes it faster than fp32, else ``fp32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and not needs_emulation("bf16", device) else "fp32"
