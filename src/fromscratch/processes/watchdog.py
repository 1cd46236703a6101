"""Detects ranks that failed, hang or are gone, so that no other rank waits for them for ever.

torch does part of this: gloo's and NCCL's timeouts end a collective whose peer is lost, and torchrun's agent stops the
workers of its own machine. What is here, torch 2.13 does not do:

- A failed rank writes its reason to the store. gloo's error names neither rank nor reason, the agent's error file does
  not reach ``status.json``, and an agent does not stop the workers of other machines.
- A thread in every rank writes a heartbeat to the store once a second. ``monitored_barrier`` would name a missing rank
  to rank 0 only, would need all other ranks to call it at the same moment, and cannot tell a hang from a death.
- A rank that hangs writes the stacks of its threads and exits. The agent would kill it after 30 s without them, and
  ``faulthandler.dump_traceback_later`` cannot tell a rank that hangs from one that waits for it.

The thread touches neither weights nor random streams nor the collectives of training.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from fromscratch.errors import EXIT_CRASH, FromScratchError
from fromscratch.processes.parent import PARENT
from fromscratch.processes.world import World, timeout_seconds

HEARTBEAT_SECONDS = 1.0
MAX_GRACE_SECONDS = 10.0  # to end without force after another rank failed; torchrun's agent kills after 30 s
STUCK_TIMEOUTS = 3  # a rank without progress for so many timeouts of a collective hangs
FAILED = "failed"
STACKS_FOLDER = "stacks"


class PeerLostError(FromScratchError):
    """Another rank failed, hangs or is gone; exit code 1."""


class Watchdog:
    """The thread of one rank.

    Args:
        store: shared by all ranks. Only this object uses this connection.
        folder: where the stacks of a hanging rank are written.
        on_forced_exit: called with the reason just before a hanging rank exits.
    """

    def __init__(self, world: World, store: Store, folder: Path, on_forced_exit: Callable[[str], None]) -> None:
        self._world, self._store, self._folder, self._on_forced_exit = world, store, folder, on_forced_exit
        self._timeout = timeout_seconds()
        self._num_sent = 0
        self._seen_progress, self._moved_at = 0, time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Sends the first heartbeat and starts the thread."""
        self._send_heartbeat()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; ``report`` and ``explain`` still work."""
        self._stopped.set()
        self._thread.join()

    def report(self, rank: int, reason: str) -> None:
        """Tells all ranks that one failed. Only the first report counts, because the others follow from it."""
        with suppress(RuntimeError):  # the store may be gone, with the machine that hosted it
            self._store.compare_set(FAILED, "", json.dumps([rank, reason]))

    def explain(self, error: Exception) -> Exception:
        """A PeerLostError where another rank caused the error, else the error itself."""
        if not is_of_communication(error):
            return error
        self._world.heartbeat()  # this rank does not hang: its collective has just ended
        try:
            cause = self._find_cause()
        except RuntimeError:
            return error  # the store is gone too
        if cause is None or cause[0] == self._world.rank:
            return error
        rank, reason = cause
        self.report(rank, reason)  # where that rank hangs, its own watchdog reads this and ends it
        return PeerLostError(f"the process of rank {rank} {reason}; this one (rank {self._world.rank}) ends with it")

    def _find_cause(self) -> tuple[int, str] | None:
        """The first failure reported; without one, the rank that is gone or hangs."""
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        before = {rank: self._heartbeat_of(rank) for rank in others}
        deadline = time.monotonic() + 3 * HEARTBEAT_SECONDS
        while time.monotonic() < deadline:
            if (failure := self._first_failure()) is not None:
                return failure
            time.sleep(0.1)
        heartbeats = {rank: self._heartbeat_of(rank) for rank in others}
        for rank in others:
            if heartbeats[rank] == before[rank]:
                return rank, "is gone (killed, perhaps for lack of memory, or its machine was lost)"
        idle_seconds, rank = max((float(heartbeat.split()[1]), rank) for rank, heartbeat in heartbeats.items())
        if idle_seconds > self._timeout / 2:
            return rank, f"hangs: it did not answer for {self._timeout:.0f} s"
        return None

    def _first_failure(self) -> tuple[int, str] | None:
        if not self._store.check([FAILED]):
            return None
        rank, reason = json.loads(self._store.get(FAILED))
        return rank, reason

    def _run(self) -> None:
        """The thread: checks once a second, until training is over or this rank must exit."""
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                reason = self._check()
            except (RuntimeError, ValueError):
                reason = "the store that all ranks share is gone, with the machine that hosted it"
            if reason and not self._stopped.wait(min(MAX_GRACE_SECONDS, self._timeout / 2)):
                if PARENT.is_lost():
                    return  # with the launcher's store; the parent watch gives this rank time to save, and ends it
                self._force_exit(reason)

    def _check(self) -> str:
        """Sends a heartbeat, reports this rank where it hangs, and returns the first failure reported, or nothing."""
        idle_seconds = self._send_heartbeat()
        if idle_seconds > STUCK_TIMEOUTS * self._timeout:
            self.report(self._world.rank, f"hangs: it made no progress for {idle_seconds:.0f} s")
        failure = self._first_failure()
        return f"the process of rank {failure[0]} {failure[1]}" if failure else ""

    def _send_heartbeat(self) -> float:
        """Returns the seconds since this rank last made progress, which it also sends."""
        if self._seen_progress != self._world.heartbeat.count:
            self._seen_progress, self._moved_at = self._world.heartbeat.count, time.monotonic()
        idle_seconds = time.monotonic() - self._moved_at
        self._num_sent += 1
        self._store.set(f"heartbeat/{self._world.rank}", f"{self._num_sent} {idle_seconds:.1f}")
        return idle_seconds

    def _heartbeat_of(self, rank: int) -> str:
        return self._store.get(f"heartbeat/{rank}").decode()

    def _force_exit(self, reason: str) -> None:
        """Writes the stacks of all threads, and ends this process."""
        rank = self._world.rank
        path = self._folder / f"rank-{rank}.txt"
        print(f"error: {reason}; rank {rank} is stuck here and ends (also in {path}):", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        try:
            self._folder.mkdir(exist_ok=True)
            with path.open("w") as file:
                print(reason, file=file, flush=True)
                faulthandler.dump_traceback(file)
            self._on_forced_exit(f"{reason}; rank {rank} was stuck (its stacks are in {path})")
        finally:
            os._exit(EXIT_CRASH)


def is_of_communication(error: Exception) -> bool:
    """Whether an error comes from a collective, so that another rank may be its cause."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def watchdog(world: World, run: Path, on_forced_exit: Callable[[str], None]) -> Iterator[None]:
    """Runs a watchdog during the block, where there are several ranks.

    Args:
        run: the run's directory, for the stacks of a rank that hangs.
        on_forced_exit: called with the reason just before a hanging rank exits.

    Raises:
        PeerLostError: another rank failed, hangs or is gone; the message names it and the reason.
    """
    if world.size == 1:
        yield
        return
    store = PrefixStore("watchdog", world.store.clone())  # its own connection: other requests may block theirs
    dog = Watchdog(world, store, run / STACKS_FOLDER, on_forced_exit)
    dog.start()
    world.barrier()  # every rank has sent a heartbeat
    try:
        yield
    except BaseException as error:
        cause = dog.explain(error) if isinstance(error, Exception) else error
        if not isinstance(cause, PeerLostError):
            dog.report(world.rank, f"failed: {type(error).__name__}: {error}")
        if cause is error:
            raise
        raise cause from error
    finally:
        dog.stop()
