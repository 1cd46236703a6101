"""Stopping when asked: the first signal finishes the step and saves, the second ends at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether somebody asked the run to stop, and how."""

    def __init__(self) -> None:
        self.reason = ""

    def __call__(self) -> bool:
        return bool(self.reason)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catches SIGINT (Ctrl-C), SIGTERM and SIGUSR1 inside the block; handlers before are put back."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.reason:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
