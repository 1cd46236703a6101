"""What makes a model faster or smaller on this machine without changing what it learns."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fromscratch.errors import UsageError
from fromscratch.machine.emulation import needs_emulation
from fromscratch.models.compiling import prepare_to_compile
from fromscratch.models.gpt import GPT

LEAST_CAPABILITY = (7, 0)  # of a CUDA device: what Triton, which writes the compiled kernels, asks for


@dataclass(frozen=True)
class Acceleration:
    """Choices of the machine for one model; none of them changes a result beyond rounding."""

    compile: bool = False
    """``torch.compile`` of the training step's forward and backward passes."""
    activation_checkpointing: bool = False
    """Only the input of each block is kept; backward computes the rest again (Chen et al. 2016)."""

    def __str__(self) -> str:
        extra = ", activation checkpointing" if self.activation_checkpointing else ""
        return ("compiled" if self.compile else "eager") + extra


def choose_acceleration(
    device: torch.device, *, precision: str, compile_wanted: bool | None, activation_checkpointing: bool
) -> tuple[Acceleration, str]:
    """What to use on a device, and where compiling would be usual but is impossible, why it is.

    ``compile_wanted`` None is on for CUDA, where it pays, and off elsewhere, where it does not (docs/speed.md).

    Raises:
        UsageError: compiling was asked for and this machine cannot.
    """
    usual = compile_wanted is None and device.type == "cuda"
    reason = why_not_compiled(device, precision) if compile_wanted or usual else ""
    if compile_wanted and reason:
        raise UsageError(f"--compile: {reason}; use --no-compile")
    return Acceleration(bool(compile_wanted or usual) and not reason, activation_checkpointing), reason


def why_not_compiled(device: torch.device, precision: str) -> str:
    """What ``torch.compile`` lacks here, or nothing."""
    if needs_emulation(precision, device):
        return f"this processor has no {precision} instructions, which compiled code would need"
    compilers = [os.environ.get("CXX", ""), os.environ.get("CC", ""), "c++", "g++", "clang++", "cc", "gcc", "clang"]
    if not any(name and shutil.which(name) for name in compilers):
        return "torch.compile needs a C++ compiler, and there is none"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "torch.compile needs Python's header files, and they are not installed (python3-dev or the like)"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "torch.compile needs Triton, which is not installed"
        if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            return f"torch.compile needs a CUDA device of capability {'.'.join(map(str, LEAST_CAPABILITY))} or more"
    return ""


def accelerate(model: GPT, acceleration: Acceleration, *, backend: str = "inductor") -> None:
    """Applies the choices in place: the model's parameters and their names stay what they are."""
    if acceleration.activation_checkpointing:
        model.gradient_checkpointing = True
    if acceleration.compile:
        compile_losses(model, backend=backend)


def compile_losses(model: GPT, *, backend: str = "inductor") -> None:
    """``model.losses`` compiled for training; evaluation, whose shapes differ, stays eager.

    Shapes are fixed: a batch of another size compiles anew instead of making all kernels general.
    """
    eager: Callable[[Tensor, Tensor], Tensor] = model.losses
    prepare_to_compile()
    compiled = torch.compile(eager, dynamic=False, backend=backend)

    def losses(tokens: Tensor, targets: Tensor) -> Tensor:
        return compiled(tokens, targets) if model.training else eager(tokens, targets)

    model.losses = losses  # type: ignore[method-assign]
