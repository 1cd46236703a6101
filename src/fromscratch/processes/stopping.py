"""Stopping when asked: the first signal finishes the step and saves, the second ends at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


LAST_WORDS_SECONDS = 1.0


class StopRequest:
    """Whether somebody asked the run to stop, and how."""

    def __init__(self) -> None:
        self.reason = ""
        self.last_words: Callable[[str], None] = lambda _name: None
        """Called with the signal's name before a second one ends the process."""

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
        name = signal.Signals(number).name
        if self.reason:
            speaker = threading.Thread(target=self.last_words, args=(name,), daemon=True)
            speaker.start()
            speaker.join(LAST_WORDS_SECONDS)  # a disk that hangs must not keep the process
            os._exit(128 + number)
        self.reason = name
