"""No process of a run waits for ever for another that hangs or is gone.

While they train, a thread in every process notes in torchrun's store, once a second, that it is
alive, reads whether another has failed, and watches its neighbour in the ring. A process that fails
says so there, first and with its reason, so that the others can name it. One that is still stuck when
the others have ended writes the stacks of its threads, to stderr and into the run, and ends itself.
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
from fromscratch.processes.world import World, timeout_seconds

SECONDS_BETWEEN_BEATS = 1.0
MOST_SILENT_SECONDS = 60.0  # without a beat, a neighbour's process or machine is gone
MOST_GRACE_SECONDS = 10.0  # to end by itself after another has failed; torchrun waits 30 s, then kills
STUCK_TIMEOUTS = 3  # a process that has not moved for so many timeouts of a collective never will
FAILED = "failed"
STACKS_FOLDER = "stacks"


class PeerLostError(FromScratchError):
    """Another process of the run failed, hangs or is gone; exit code 1."""


class Watchdog:
    """The thread of one process, and what it knows about the others."""

    def __init__(self, world: World, store: Store, folder: Path, on_end: Callable[[str], None]) -> None:
        """
        Args:
            store: shared by all processes; used by this thread alone, but for ``fail`` and ``explain``.
            folder: where the stacks of a stuck process go.
            on_end: told why, just before a stuck process ends.
        """
        self._world, self._store, self._folder, self._on_end = world, store, folder, on_end
        self._timeout = timeout_seconds()
        self._over = threading.Event()
        self._beats = 0
        self._seen_pulse, self._moved_at = world.pulse.count, time.monotonic()
        self._seen_beats, self._heard_at = "", time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; ``fail`` and ``explain`` still work."""
        self._over.set()
        self._thread.join()

    def fail(self, rank: int, reason: str) -> None:
        """Tells all that a process failed; only the first failure counts, as the others follow from it."""
        with suppress(RuntimeError):  # the store may be gone with the process that kept it
            self._store.compare_set(FAILED, "", json.dumps([rank, reason]))

    def explain(self, error: Exception) -> Exception:
        """The failure of another process where an error only follows from it, else the error itself."""
        if not is_of_communication(error):
            return error
        try:
            first = self._cause()
        except RuntimeError:
            return error  # nobody is left to ask
        if first is None or first[0] == self._world.rank:
            return error
        rank, reason = first
        self.fail(rank, reason)  # so that one that hangs knows that it was given up
        return PeerLostError(f"the process of rank {rank} {reason}; this one (rank {self._world.rank}) ends with it")

    def _cause(self) -> tuple[int, str] | None:
        """The failure that the others tell of, or a process that gives no sign of life."""
        begin, beats = time.monotonic(), self._beats_of_all()
        while time.monotonic() - begin < 3 * SECONDS_BETWEEN_BEATS:
            if (first := self._first_failure()) is not None:
                return first
            time.sleep(0.1)
        return self._who_is_lost(beats)

    def _who_is_lost(self, before: dict[int, str]) -> tuple[int, str] | None:
        """A process that stands still, though all were asked for a second sign of life."""
        hanging = None
        for rank, beat in self._beats_of_all().items():
            if beat == before[rank]:
                return rank, "is gone (killed, perhaps for want of memory, or its machine was lost)"
            if float(beat.split()[1]) > self._timeout / 2:
                hanging = rank, f"hangs: it did not answer for {self._timeout:.0f} s"
        return hanging

    def _beats_of_all(self) -> dict[int, str]:
        others = (rank for rank in range(self._world.size) if rank != self._world.rank)
        return {rank: self._store.get(f"alive/{rank}").decode() for rank in others}

    def _first_failure(self) -> tuple[int, str] | None:
        if not self._store.check([FAILED]):
            return None
        rank, reason = json.loads(self._store.get(FAILED))
        return rank, reason

    def _watch(self) -> None:
        """The thread: looks around until training is over or this process must end."""
        while not self._over.wait(SECONDS_BETWEEN_BEATS):
            try:
                trouble = self._look_around()
            except (RuntimeError, ValueError):  # the store is gone, and with it the process that kept it
                trouble = "the store that all processes share is gone"
            if trouble and not self._over.wait(min(MOST_GRACE_SECONDS, self._timeout / 2)):
                self._end(trouble)

    def _look_around(self) -> str:
        """Says that this process is alive; returns why it must end, or nothing."""
        self._beat()
        if (first := self._first_failure()) is not None:
            return f"the process of rank {first[0]} {first[1]}"
        idle = self._idle_seconds()
        if idle > STUCK_TIMEOUTS * self._timeout:
            self.fail(self._world.rank, f"hangs: it has not moved for {idle:.0f} s")
            return f"this process has not moved for {idle:.0f} s"
        neighbour = (self._world.rank + 1) % self._world.size
        if self._silence_of(neighbour) > MOST_SILENT_SECONDS:
            self.fail(neighbour, f"is gone: no sign of life for {MOST_SILENT_SECONDS:.0f} s")
        return ""

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"alive/{self._world.rank}", f"{self._beats} {self._idle_seconds():.1f}")

    def _idle_seconds(self) -> float:
        if self._seen_pulse != self._world.pulse.count:
            self._seen_pulse, self._moved_at = self._world.pulse.count, time.monotonic()
        return time.monotonic() - self._moved_at

    def _silence_of(self, rank: int) -> float:
        beats = self._store.get(f"alive/{rank}").decode()
        if beats != self._seen_beats:
            self._seen_beats, self._heard_at = beats, time.monotonic()
        return time.monotonic() - self._heard_at

    def _end(self, trouble: str) -> None:
        """Writes down where every thread of this process stands, and ends it."""
        rank = self._world.rank
        path = self._folder / f"rank-{rank}.txt"
        print(f"error: {trouble}; rank {rank} is stuck here and ends (also in {path}):", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        try:
            self._folder.mkdir(exist_ok=True)
            with path.open("w") as file:
                print(trouble, file=file, flush=True)
                faulthandler.dump_traceback(file)
            self._on_end(f"{trouble}; rank {rank} was stuck (its stacks are in {path})")
        finally:
            os._exit(EXIT_CRASH)


def is_of_communication(error: Exception) -> bool:
    """Whether an error comes from a collective: another process may be its cause."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def watched(world: World, run: Path, on_end: Callable[[str], None]) -> Iterator[None]:
    """Trains inside, with a watchdog where there are several processes.

    Args:
        run: the run's directory, for the stacks of a process that is stuck.
        on_end: told why, just before a stuck process ends.

    Raises:
        PeerLostError: another process failed, hangs or is gone; the message names its rank and why.
    """
    if world.size == 1:
        yield
        return
    store = PrefixStore("watchdog", world.store.clone())  # a connection of its own: others may wait on theirs
    watchdog = Watchdog(world, store, run / STACKS_FOLDER, on_end)
    watchdog.start()
    world.wait()  # all have said that they are alive
    try:
        yield
    except BaseException as error:
        cause = watchdog.explain(error) if isinstance(error, Exception) else error
        if not isinstance(cause, PeerLostError):
            watchdog.fail(world.rank, f"failed: {type(error).__name__}: {error}")
        if cause is error:
            raise
        raise cause from error
    finally:
        watchdog.stop()
