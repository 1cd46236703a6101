"""Arithmetic: what autocast does, and the loss scale that fp16 needs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fromscratch.machine.emulation import EmulatedProducts, needs_emulation

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """One of fp32, tf32, bf16 and fp16. Weights, gradients and optimiser state stay fp32.

    tf32 shortens the inputs of fp32 matrix products to 10 mantissa bits, on devices that have it.
    fp16 multiplies the loss by a scale, which falls when a gradient overflows and otherwise grows
    (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self.kind = kind
        self._device_type = device.type
        self._dtype = AUTOCAST_DTYPES.get(kind)
        self.emulated = needs_emulation(kind, device)
        """Whether this processor lacks instructions for it and computes its products in fp32."""
        self.scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Everything computed inside uses this precision; the setting before is put back after."""
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype is not None), self.products():
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of the (scaled) loss; autocast's types are in the graph, the rest is set again here."""
        scaled: Tensor = self.scaler.scale(loss)
        with self.products():
            scaled.backward()

    @contextmanager
    def products(self) -> Iterator[None]:
        """Matrix products inside are computed as the precision says: tf32's by its units, others by emulation."""
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
        """Divides the gradients by the loss scale; nothing to do but for fp16."""
        self.scaler.unscale_(optimizer)

    def update_scale(self) -> None:
        """Lets the loss scale react to what ``unscale`` found."""
        self.scaler.update()

    def loss_scale(self) -> Tensor | float:
        """The scale of the next step, on the device; infinite where there is none."""
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None
        return float("inf") if scale is None else scale.clone()

    def state(self) -> dict[str, Any]:
        """What a resume needs; empty but for fp16."""
        return dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what ``state`` returned."""
        if state:
            self.scaler.load_state_dict(state)


def fast_16bit_precision(device: torch.device) -> str:
    """``bf16`` where the device computes it faster than fp32, else ``fp32``: for run files we write."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and not needs_emulation("bf16", device) else "fp32"
