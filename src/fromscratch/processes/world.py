"""Several processes that train one model, each on its own device.

``torchrun`` (or ``--processes N``, which starts torchrun's launcher) starts one process per device, on one machine or
on several. Tensors on CUDA devices travel by NCCL, tensors in CPU memory by gloo. The collectives of this file use
CPU memory, so they never wait for a device. What one rank alone finds out (a stop request, no memory) all ranks agree
on before any of them acts; otherwise the next collective would deadlock.
"""

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fromscratch.errors import UsageError
from fromscratch.processes.rendezvous import session_store

TIMEOUT_VARIABLE = "FROMSCRATCH_TIMEOUT_SECONDS"
DEFAULT_TIMEOUT_SECONDS = 600.0
T = TypeVar("T")


@dataclass
class Heartbeat:
    """Counts the progress of one process. Called after a micro-batch and after a collective."""

    count: int = 0

    def __call__(self) -> None:
        self.count += 1


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. The default is a single process."""

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, repr=False, compare=False)
    """A ``torch.distributed.Store`` that all ranks share; None for a single process."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat, repr=False, compare=False)
    """Read by the watchdog: a rank whose count stops hangs."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; the same answer in all."""
        return self.maximum(int(flag)) > 0

    def maximum(self, value: float) -> float:
        """The largest value among the processes."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def sum(self, value: float) -> float:
        """The sum over the processes, in double precision."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def _reduce(self, value: float, operation: Any) -> float:
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation)
        self.heartbeat()
        return float(tensor.item())

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.any(False)

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process. JSON must be able to hold it."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = int(self.maximum(len(text)))
        content = torch.frombuffer(bytearray(text.ljust(length)), dtype=torch.uint8)
        dist.broadcast(content, src=0)
        return json.loads(bytes(content.tolist()))

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenates the rows of all processes in the order of ranks; the same in every process."""
        if self.size == 1:
            return rows
        counts = [int(self.sum(len(rows) if rank == self.rank else 0)) for rank in range(self.size)]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def local_shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's contiguous part of a sequence. The parts differ by at most one item."""
        begin, end = split_evenly(len(items), self.size)[self.rank]
        return items[begin:end]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others do.

        Where the main process raises in the block, the others raise PeerFailedError instead of running it.
        """
        failed = True
        try:
            if not self.is_main and self.any(False):
                raise PeerFailedError("stopped, because the main process could not begin; its message says why")
            yield
            failed = False
        finally:
            if self.is_main:
                self.any(failed)


ALONE = World()
"""A single process."""


class PeerFailedError(UsageError):
    """The main process failed; its own message says why."""


def split_evenly(length: int, parts: int) -> list[tuple[int, int]]:
    """Splits ``length`` items into contiguous parts, (begin, end) each, whose sizes differ by at most one."""
    return list(pairwise(length * part // parts for part in range(parts + 1)))


def max_local_shard(items: int, world_size: int) -> int:
    """Number of items in the largest shard."""
    return -(-items // world_size)


def started_world_size() -> int:
    """Number of processes in torchrun's environment; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_rank() -> int:
    """Rank of this process in torchrun's environment; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def started_local_rank() -> int:
    """Rank of this process on its machine, in torchrun's environment; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started_local_world_size() -> int:
    """Number of processes on this machine, in torchrun's environment; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def timeout_seconds() -> float:
    """How long a collective waits for the other ranks."""
    return float(os.environ.get(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_SECONDS))


def _never_free(group: object) -> None:
    """Keeps a process group that was shut down in memory until the process ends.

    Otherwise its last owner may be DistributedDataParallel's reducer, whose destructor holds the GIL while it waits for
    gloo's threads, one of which may be waiting for the GIL to free a tensor (torch 2.13): the run would never exit.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Joins the process group that torchrun's environment describes, and destroys it at the end.

    NCCL is told its device, so that it connects now and never guesses it. Without ``WORLD_SIZE`` in the environment it
    is a single process.
    """
    if started_world_size() == 1:
        yield ALONE
        return
    timeout = timedelta(seconds=timeout_seconds())
    store, rank, size = session_store(timeout)
    on_cuda = {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
    chosen: dict[str, Any] = on_cuda if device.type == "cuda" else {"backend": "gloo"}
    dist.init_process_group(**chosen, store=store, rank=rank, world_size=size, timeout=timeout)
    group = dist.group.WORLD
    try:
        yield World(rank, size, store)
    finally:
        dist.destroy_process_group()
        _never_free(group)
