"""Where the seconds of a session go, beside the training steps, whose seconds are in their records."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Purpose(StrEnum):
    """What the loop does between the steps."""

    PROBE = "probe"
    """Trying the micro-batch before the first step; compiled code is built there."""
    EVALUATION = "evaluation"
    SAMPLING = "sampling"
    CHECKPOINTS = "checkpoints"
    """How long training waits for them; they are written in the background."""


class TimeSpent:
    """Seconds by purpose."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Purpose, 0.0)

    @contextmanager
    def on(self, purpose: Purpose) -> Iterator[None]:
        """Adds the seconds of the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[purpose] += time.perf_counter() - begin
