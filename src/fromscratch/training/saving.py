"""Saving in the background: training waits for a copy of the tensors, a thread does the rest.

One save is in flight at most, and its copy lies in buffers that the next save uses again, so memory
is bounded by one checkpoint. Whoever begins a save first collects the one before.
"""

import errno
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fromscratch.errors import FromScratchError
from fromscratch.files import point_link
from fromscratch.formats.checkpoints import (
    Contents,
    TrainingState,
    model_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from fromscratch.formats.tensor_files import bytes_of
from fromscratch.runs.retention import BEST, plan_retention, remove_checkpoint

SPACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


Best = tuple[int | None, float | None]
"""Step and loss of the best checkpoint, where there is one."""


@dataclass(frozen=True)
class Facts:
    """What a save must know beside the tensors and the state."""

    identity: dict[str, Any]
    """Recorded in the manifest."""
    best_before: Best
    """What is the best if this save fails."""
    before_writing: Callable[[], None]
    """Called in the background before anything is written; where it raises OSError the save has failed."""


@dataclass(frozen=True)
class SaveResult:
    """How a save ended."""

    step: int
    is_best: bool
    best_before: Best
    num_bytes: int
    """Of tensors."""
    stall_seconds: float
    """How long training waited."""
    write_seconds: float
    """From the copy to the last rename, in the background."""
    error: str = ""
    """Why there is no checkpoint; empty where there is one."""

    def facts(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "step": self.step,
            "best": self.is_best,
            "bytes": self.num_bytes,
            "stall_seconds": round(self.stall_seconds, 3),
            "write_seconds": round(self.write_seconds, 3),
        }


class HostBuffers:
    """A copy of tensors in the computer's memory; the memory is taken once. Pinned for CUDA."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors, complete on return, valid until the next call. Raises RuntimeError without memory."""
        for name in self._buffers.keys() - tensors.keys():
            del self._buffers[name]
        waits = False
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
            waits = waits or tensor.is_cuda
        if waits:
            torch.cuda.synchronize()
        return dict(self._buffers)


class CheckpointSaver:
    """Writes a run's checkpoints, one at a time, and applies retention after each."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.saved_step: int | None = None
        """Step of the last checkpoint that was written whole."""
        self._folder = folder
        self._keep = keep
        self._buffers = HostBuffers(), HostBuffers()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[SaveResult] | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, facts: Facts) -> None:
        """Copies everything and returns; the save before must have been collected.

        Where the computer has no memory for the copy, it writes at once and training waits.
        """
        assert self._in_flight is None, "one save at a time"
        began_at = time.perf_counter()
        tensors = [model_tensors(model), optimizer_tensors(model, optimizer)]
        try:
            copies = [buffers.copy(part) for buffers, part in zip(self._buffers, tensors, strict=True)]
        except (RuntimeError, MemoryError):
            self._buffers, copies = (HostBuffers(), HostBuffers()), tensors
        contents = Contents(copies[0], copies[1], deepcopy(state))
        self._in_flight = self._thread.submit(self._write, contents, facts, time.perf_counter() - began_at)
        if copies is tensors:
            self._in_flight.result()

    def collect(self, *, wait: bool) -> SaveResult | None:
        """How the save in flight ended, told once; None where there is none, or it goes on and nobody waits."""
        if self._in_flight is None or not (wait or self._in_flight.done()):
            return None
        result = self._in_flight.result()
        self._in_flight = None
        if not result.error:
            self.saved_step = result.step
        return result

    def close(self) -> None:
        """Waits for the save in flight and ends the thread."""
        self._thread.shutdown(wait=True)

    def _write(self, contents: Contents, facts: Facts, stall_seconds: float) -> SaveResult:
        began_at, error, state = time.perf_counter(), "", contents.state
        is_best = state.best_step == state.step
        num_bytes = bytes_of(contents.model) + bytes_of(contents.optimizer)
        try:
            facts.before_writing()
            path = save_checkpoint(self._folder, contents, **facts.identity)
            if is_best:
                point_link(self._folder / BEST, path.name)
            self._retain(path, state.best_step)
        except Exception as problem:  # told, not raised: what it means is for the loop to decide
            error = explain(problem, self._folder, state.step, num_bytes)
        write_seconds = time.perf_counter() - began_at
        return SaveResult(state.step, is_best, facts.best_before, num_bytes, stall_seconds, write_seconds, error)

    def _retain(self, newest: Path, best_step: int | None) -> None:
        with suppress(OSError):  # the checkpoint is safe; what could not be deleted is tried again after the next
            for old in plan_retention(self._folder, keep=self._keep, best_step=best_step, trusted=[newest]).removed:
                remove_checkpoint(old)


def explain(problem: Exception, folder: Path, step: int, num_bytes: int) -> str:
    """What kept a checkpoint from being written, with the bytes it needs where the disk is the reason."""
    if not isinstance(problem, OSError):
        reason = str(problem) if isinstance(problem, FromScratchError) else f"{type(problem).__name__}: {problem}"
        return f"checkpoint of step {step} in {folder}: not written ({reason})"
    sentence = f"checkpoint of step {step} in {folder}: not written ({problem.strerror or problem})"
    if problem.errno in SPACE_ERRORS:
        free = shutil.disk_usage(folder).free
        sentence += f"; it needs {num_bytes:,} bytes and {free:,} are free there: make room"
    return sentence
