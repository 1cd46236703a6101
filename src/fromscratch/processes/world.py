"""Several processes that train one model, each on its own device.

Started by ``torchrun`` (or ``--processes N``, which starts torchrun's launcher): one process per
device, on one machine or on many. Gradients travel by NCCL between CUDA devices and by gloo
otherwise; decisions travel by gloo always, on the CPU, so that agreeing on something never waits for
a device. What one process alone finds out (a stop request, no memory) is agreed on before anyone
acts; otherwise the others would wait for it for ever.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fromscratch.errors import UsageError
from fromscratch.processes.rendezvous import meet

TIMEOUT_VARIABLE = "FROMSCRATCH_TIMEOUT_SECONDS"
DEFAULT_TIMEOUT_SECONDS = 600.0
T = TypeVar("T")


@dataclass
class Pulse:
    """Counts what a process has got done; one whose count stands still hangs."""

    count: int = 0

    def beat(self) -> None:
        """Something was done: a micro-batch, an agreement."""
        self.count += 1


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. The default is a process alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Which process of this machine."""
    store: Any = field(default=None, repr=False, compare=False)
    """What the processes keep in common (a ``torch.distributed.Store``); None for a process alone."""
    _decisions: Any = field(default=None, repr=False)
    """The gloo group that agreements use; None for a process alone."""
    pulse: Pulse = field(default_factory=Pulse, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process prepares what its machine needs."""
        return self.local_rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; all get the same answer."""
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
        dist.all_reduce(tensor, op=operation, group=self._decisions)
        self.pulse.beat()
        return float(tensor.item())

    def from_main(self, value: T) -> T:
        """The main process's value, in every process; it must be what JSON can hold."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = int(self.maximum(len(text)))
        content = torch.frombuffer(bytearray(text.ljust(length)), dtype=torch.uint8)
        dist.broadcast(content, src=0, group=self._decisions)
        return json.loads(bytes(content.tolist()))

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier(group=self._decisions)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others enter it.

        Where it fails, the others fail too, at once and without entering.
        """
        failed = True
        try:
            if not self.is_main and self.any(False):
                raise PeerFailedError
            yield
            failed = False
        finally:
            if self.is_main:
                self.any(failed)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a sequence, contiguous; the parts differ by at most one item."""
        begin, end = even_parts(len(items), self.size)[self.rank]
        return items[begin:end]

    def joined(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The 1-D arrays of all processes behind one another, in the order of ranks; the same in every process."""
        if self.size == 1:
            return values
        lengths = [int(self.sum(len(values) if rank == self.rank else 0)) for rank in range(self.size)]
        padded = torch.zeros(max(lengths), dtype=torch.float64)
        padded[: len(values)] = torch.from_numpy(values)
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=self._decisions)
        return np.concatenate([part[:length].numpy() for part, length in zip(parts, lengths, strict=True)])


ALONE = World()
"""A process alone."""


class PeerFailedError(UsageError):
    """Another process failed; its own message says why."""

    def __init__(self) -> None:
        super().__init__("stopped, because the main process could not begin; its message says why")


def even_parts(length: int, parts: int) -> list[tuple[int, int]]:
    """``length`` items in contiguous parts, (begin, end) each, whose sizes differ by at most one."""
    return list(pairwise(length * part // parts for part in range(parts + 1)))


def max_local_shard(items: int, world_size: int) -> int:
    """Number of items in the largest shard."""
    return -(-items // world_size)


def started_world_size() -> int:
    """Number of processes that torchrun says it started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_rank() -> int:
    """Which of all processes torchrun says this is; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def started_local_rank() -> int:
    """Which process of this machine torchrun says this is; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started_local_world_size() -> int:
    """Number of processes on this machine that torchrun says it started; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def timeout_seconds() -> float:
    """How long processes wait for one another."""
    return float(os.environ.get(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_SECONDS))


@contextmanager
def joined_world(device_type: str) -> Iterator[World]:
    """The world that torchrun's environment describes; leaves it at the end.

    Without ``WORLD_SIZE`` in the environment it is a process alone.
    """
    size = started_world_size()
    if size == 1:
        yield ALONE
        return
    timeout = timedelta(seconds=timeout_seconds())
    store, rank, size = meet(timeout)
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        decisions = dist.new_group(backend="gloo", timeout=timeout)
        yield World(rank, size, started_local_rank(), store, decisions)
    finally:
        dist.destroy_process_group()
