"""Writes checkpoints in a background thread. Training waits only until the tensors are copied.

At most one save is in flight. Its copy lies in buffers that the next save reuses, so memory is bounded by
one checkpoint. A save may begin only after the one before was collected.
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
from torch import Tensor

from fromscratch.errors import FromScratchError
from fromscratch.files import point_link
from fromscratch.formats.checkpoints import (
    CARRY_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    Contents,
    average_file,
    save_checkpoint,
)
from fromscratch.formats.tensor_files import bytes_of
from fromscratch.runs.retention import BEST, plan_retention, remove_checkpoint

SPACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


Best = tuple[int | None, float | None]
"""Step and loss of the best checkpoint, where there is one."""
TensorKey = tuple[str, str]
"""The file that holds a tensor, and the tensor's name there."""


@dataclass(frozen=True)
class SaveRequest:
    """What a save needs beside the tensors and the state."""

    identity: dict[str, Any]
    """Recorded in the manifest."""
    previous_best: Best
    """The best checkpoint if this save fails."""
    before_writing: Callable[[], None]
    """Called in the background before anything is written. Where it raises OSError, the save has failed."""


@dataclass(frozen=True)
class SaveResult:
    """How a save ended."""

    step: int
    is_best: bool
    previous_best: Best
    num_bytes: int
    """Of the tensors."""
    stall_seconds: float
    """How long training waited."""
    write_seconds: float
    """From the copy to the last rename, in the background."""
    error: str = ""
    """Why the save failed; empty where it succeeded."""

    def to_dict(self) -> dict[str, Any]:
        """The fields of the ``checkpoint`` event."""
        return {
            "step": self.step,
            "best": self.is_best,
            "bytes": self.num_bytes,
            "stall_seconds": round(self.stall_seconds, 3),
            "write_seconds": round(self.write_seconds, 3),
        }


class HostBuffers:
    """Reusable host memory for copies of tensors; pinned for tensors on a CUDA device."""

    def __init__(self) -> None:
        self._buffers: dict[TensorKey, Tensor] = {}

    def copy(self, tensors: dict[TensorKey, Tensor]) -> dict[TensorKey, Tensor]:
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
        self._buffers = HostBuffers()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[SaveResult] | None = None

    def begin(self, contents: Contents, request: SaveRequest) -> None:
        """Copies everything and returns; the save before must have been collected.

        Without host memory for the copy, it writes at once and training waits.
        """
        assert self._in_flight is None, "one save at a time"
        began_at = time.perf_counter()
        tensors = {(file, name): tensor for file, found in contents.files.items() for name, tensor in found.items()}
        try:
            copies, is_copy = self._buffers.copy(tensors), True
        except (RuntimeError, MemoryError):
            self._buffers, copies, is_copy = HostBuffers(), tensors, False
        by_file = {file: {n: t for (f, n), t in copies.items() if f == file} for file in contents.files}
        copied = Contents(
            by_file[MODEL_FILE],
            by_file[OPTIMIZER_FILE],
            deepcopy(contents.state),
            by_file.get(CARRY_FILE, {}),
            {name: by_file[average_file(name)] for name in contents.averages},
        )
        self._in_flight = self._thread.submit(self._write, copied, request, time.perf_counter() - began_at)
        if not is_copy:
            self._in_flight.result()

    def collect(self, *, wait: bool) -> SaveResult | None:
        """Returns how the save in flight ended, once. None without one, or where it is not done and ``wait`` is off."""
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

    def _write(self, contents: Contents, request: SaveRequest, stall_seconds: float) -> SaveResult:
        began_at, error, state = time.perf_counter(), "", contents.state
        is_best = state.best_step == state.step
        num_bytes = sum(map(bytes_of, contents.files.values()))
        try:
            request.before_writing()
            path = save_checkpoint(self._folder, contents, **request.identity)
            if is_best:
                point_link(self._folder / BEST, path.name)
            self._retain(path, state.best_step)
        except Exception as problem:  # returned, not raised: the loop decides what follows
            error = explain(problem, self._folder, state.step, num_bytes)
        write_seconds = time.perf_counter() - began_at
        return SaveResult(state.step, is_best, request.previous_best, num_bytes, stall_seconds, write_seconds, error)

    def _retain(self, newest: Path, best_step: int | None) -> None:
        with suppress(OSError):  # the checkpoint is safe; the deletion is tried again after the next one
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
