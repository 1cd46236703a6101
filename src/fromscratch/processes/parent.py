"""Ends a worker whose launcher is gone, for example killed for lack of memory.

torchrun's agent stops its workers, unless it is killed. Then they would wait for one another or for the agent's store
for many minutes, and hold their devices. ``PR_SET_PDEATHSIG`` is no remedy: it exists only on Linux, and a process that
waits in C++ code does not run Python's signal handlers. So a thread watches the parent. It imports no torch, because
a launcher can be gone while its workers still import torch.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fromscratch.errors import EXIT_CRASH

LAUNCHED_VARIABLE = "FROMSCRATCH_LAUNCHED"
"""Process id of the launcher, in the environment of its workers."""
WATCHED_VARIABLE = "FROMSCRATCH_WATCHED"
"""Process id of a study's runner, in the environment of the runs that it trains."""
POLL_SECONDS = 0.5
MAX_SAVE_SECONDS = 120.0  # to finish the step and save without a launcher
MAX_CONNECT_SECONDS = 5.0


class ParentWatch:
    """Watches the parent of this process from a thread.

    Where the parent is gone, the process ends with exit code 1: at once, or after a save in ``saving_first``.
    """

    def __init__(self) -> None:
        self._parent = 0
        self._request_stop: Callable[[str], None] | None = None

    def start(self, parent: int) -> None:
        """Starts the thread. ``parent`` is the process id that the parent must have."""
        self._parent = parent
        threading.Thread(target=self._run, name="parent watch", daemon=True).start()

    def is_lost(self) -> bool:
        """Whether the watched parent is gone; false where none is watched."""
        return self._parent != 0 and os.getppid() != self._parent

    @contextmanager
    def saving_first(self, request_stop: Callable[[str], None]) -> Iterator[None]:
        """In the block, the loss of the parent calls ``request_stop`` with a reason, and leaves time for a save."""
        self._request_stop = request_stop
        try:
            yield
        finally:
            self._request_stop = None

    def _run(self) -> None:
        gone_before = agent_store_is_gone()
        while not gone_before and not self.is_lost():
            time.sleep(POLL_SECONDS)
        request_stop = self._request_stop
        if request_stop is not None:
            request_stop("its launcher is gone")
        try:
            print(f"error: process {os.getpid()} ends, because the one that started it is gone", file=sys.stderr)
            if request_stop is not None:
                time.sleep(MAX_SAVE_SECONDS)  # the process usually ends during this time
        finally:
            os._exit(EXIT_CRASH)


PARENT = ParentWatch()
"""The watch of this process. It does nothing until ``start``."""


def watch_launcher() -> None:
    """Starts the watch in a worker of ``--processes N``, of torchrun or of a study; does nothing elsewhere."""
    if parent := os.environ.get(LAUNCHED_VARIABLE) or os.environ.pop(WATCHED_VARIABLE, ""):
        PARENT.start(int(parent))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        PARENT.start(os.getppid())


def agent_store_is_gone() -> bool:
    """Whether nothing listens at the store of torchrun's agent.

    torchrun tells its workers no process id. Where it is gone before they ask for their parent, the store says so.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    address = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    try:
        socket.create_connection(address, MAX_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # not reachable now; joining the others will say why
    return False
