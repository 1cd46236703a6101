"""What makes a model faster or smaller on this machine without changing what it learns."""

import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fromscratch.errors import UsageError
from fromscratch.machine.emulation import needs_emulation
from fromscratch.models.compiling import prepare_to_compile
from fromscratch.models.language_model import LanguageModel

Loss = TypeVar("Loss", bound=Callable[..., Any])

MIN_CAPABILITY = (7, 0)  # of a CUDA device: what Triton, which writes the compiled kernels, asks for


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
        if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
            return f"torch.compile needs a CUDA device of capability {'.'.join(map(str, MIN_CAPABILITY))} or more"
    return ""


def accelerate(model: LanguageModel, loss: Loss, acceleration: Acceleration, *, backend: str = "inductor") -> Loss:
    """Applies the choices: activation checkpointing to the model in place, compilation to the loss.

    Evaluation, whose shapes differ, does not use the returned loss and stays eager. Shapes are fixed: a batch
    of another size compiles anew, so that kernels need not be general.

    Raises:
        UsageError: the model cannot checkpoint activations.
    """
    if acceleration.activation_checkpointing:
        if model.gradient_checkpointing is None:
            raise UsageError(f"--activation-checkpointing: {type(model).__name__} models cannot recompute activations")
        model.gradient_checkpointing = True
    if not acceleration.compile:
        return loss
    prepare_to_compile()
    # torch itself reads .grad of such tensors where a graph breaks, and warns of it
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    compiled: Loss = torch.compile(loss, dynamic=False, backend=backend)  # type: ignore[assignment]
    return compiled
