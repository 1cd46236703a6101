"""Compilation and activation checkpointing: less time or less memory for the same training result."""

import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fromscratch.errors import UsageError
from fromscratch.machine.emulation import needs_emulation
from fromscratch.models.compiling import prepare_to_compile
from fromscratch.models.head import ChunkedHead
from fromscratch.models.language_model import LanguageModel

Loss = TypeVar("Loss", bound=Callable[..., Any])

MIN_CAPABILITY = (7, 0)  # of a CUDA device; Triton, which generates the compiled kernels, requires it


@dataclass(frozen=True)
class Acceleration:
    """How to run a model on this machine. No setting changes a result beyond rounding."""

    compile: bool = False
    """Applies ``torch.compile`` to the training step's forward and backward passes."""
    activation_checkpointing: bool = False
    """Keeps only the input of each block; backward recomputes the rest (Chen et al. 2016)."""
    deterministic: bool = False
    """Uses deterministic kernels only, so that a resume on CUDA is bit-exact (``determinism.py``)."""

    def __str__(self) -> str:
        extra = ", activation checkpointing" if self.activation_checkpointing else ""
        extra += ", deterministic" if self.deterministic else ""
        return ("compiled" if self.compile else "eager") + extra


def choose_acceleration(
    device: torch.device,
    *,
    precision: str,
    compile_wanted: bool | None,
    activation_checkpointing: bool,
    deterministic: bool = False,
) -> tuple[Acceleration, str]:
    """Returns the acceleration for a device, and the problem that prevents compilation (empty if none).

    ``compile_wanted`` None compiles on CUDA only, because compilation does not pay elsewhere (docs/speed.md).

    Raises:
        UsageError: compilation was requested, but this machine cannot compile.
    """
    wanted = device.type == "cuda" if compile_wanted is None else compile_wanted
    problem = compile_problem(device, precision) if wanted else ""
    if compile_wanted and problem:
        raise UsageError(f"--compile: {problem}; use --no-compile")
    return Acceleration(wanted and not problem, activation_checkpointing, deterministic), problem


def compile_problem(device: torch.device, precision: str) -> str:
    """Returns what ``torch.compile`` lacks on this machine, or an empty string."""
    if needs_emulation(precision, device):
        return f"this processor has no {precision} instructions, which compiled code needs"
    compilers = [os.environ.get("CXX", ""), os.environ.get("CC", ""), "c++", "g++", "clang++", "cc", "gcc", "clang"]
    if not any(name and shutil.which(name) for name in compilers):
        return "torch.compile needs a C++ compiler, and none is installed"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "torch.compile needs Python's header files, and they are not installed (package python3-dev)"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "torch.compile needs Triton, which is not installed"
        if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
            return f"torch.compile needs a CUDA device of capability {'.'.join(map(str, MIN_CAPABILITY))} or more"
    return ""


def accelerate(
    model: LanguageModel,
    loss: Loss,
    acceleration: Acceleration,
    *,
    blocks: Sequence[nn.Module] = (),
    backend: str = "inductor",
) -> Loss:
    """Applies activation checkpointing and the head's kernel to the model in place; returns the loss, compiled if
    so configured.

    Evaluation does not use the returned loss and stays eager, because its shapes differ. Kernels are compiled
    for fixed shapes, because they are faster; a batch of another size compiles again.

    Args:
        blocks: where there are some, each is compiled by itself and in place, and the rest of the loss stays eager:
            what happens between blocks, such as communication, cannot be compiled.

    Raises:
        UsageError: the model cannot checkpoint activations.
    """
    if acceleration.activation_checkpointing:
        if model.gradient_checkpointing is None:
            raise UsageError(f"--activation-checkpointing: {type(model).__name__} models cannot recompute activations")
        model.gradient_checkpointing = True
    _use_head_kernel(model)
    if not acceleration.compile:
        return loss
    prepare_to_compile()
    ignore_warnings_of_the_compiler()
    if blocks:
        _compile_each(blocks, backend)
        return loss
    compiled: Loss = torch.compile(loss, dynamic=False, backend=backend)  # type: ignore[assignment]
    return compiled


def ignore_warnings_of_the_compiler() -> None:
    """Hides two warnings that a user can do nothing about."""
    # torch itself reads .grad of such tensors where a graph breaks or begins, and warns of it
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)  # train.precision decides that


def _use_head_kernel(model: LanguageModel) -> None:
    """Gives chunked heads on a CUDA device their Triton kernel, where Triton can build it."""
    heads = [module for module in model.modules() if isinstance(module, ChunkedHead) and module.weight.is_cuda]
    if heads and not compile_problem(heads[0].weight.device, "fp32"):
        from fromscratch.machine.head_kernel import triton_rows

        for head in heads:
            head.use_kernel(triton_rows)


def _compile_each(blocks: Sequence[nn.Module], backend: str) -> None:
    """Compiles the forward passes of blocks, without what hooks do before and after them."""
    versions_per_block = 2  # a last micro-batch may be smaller
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, versions_per_block * len(blocks))
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False, backend=backend)
