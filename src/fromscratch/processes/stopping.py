"""Stop requests: the first signal finishes the step and saves, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
MAX_CALLBACK_SECONDS = 1.0  # a disk that hangs must not keep the process alive


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop a run; SIGHUP (the terminal was closed) only where ``nohup`` did not set it to ignore."""
    return SIGNALS if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*SIGNALS, signal.SIGHUP)


class StopRequest:
    """Whether the run was asked to stop, and by what."""

    def __init__(self) -> None:
        self.reason = ""
        self._signalled = False
        self.on_forced_exit: Callable[[str], None] = lambda _name: None
        """Called with the signal's name before a second signal ends the process."""

    def __call__(self) -> bool:
        return bool(self.reason)

    def request(self, reason: str) -> None:
        """Asks the run to stop; the first reason counts."""
        self.reason = self.reason or reason

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the stop signals in the block. Restores the previous handlers."""
        before = {number: signal.signal(number, self._handle) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._signalled and number != signal.SIGHUP:
            callback = threading.Thread(target=self.on_forced_exit, args=(name,), daemon=True)
            callback.start()
            callback.join(MAX_CALLBACK_SECONDS)
            os._exit(128 + number)
        # SIGHUP does not count: when a terminal closes, the kernel and the shell each send it
        self._signalled = self._signalled or number != signal.SIGHUP
        self.request(name)
