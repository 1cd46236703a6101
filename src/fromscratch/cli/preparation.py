"""What a person sees while a store is prepared: a bar in a terminal, a line every ten seconds elsewhere."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fromscratch.data.prepare import PreparationObserver
from fromscratch.files import readable_seconds

SECONDS_BETWEEN_LINES = 10.0


class Meter(PreparationObserver):
    """Counts what this session has done, and how fast. The clock starts when the workers are ready."""

    def __init__(self) -> None:
        self.parts = self.tokens = self.text_bytes = 0
        self._total_bytes = self._done_bytes = 0
        self._began_at = self._ended_at = time.perf_counter()

    def begin(self, *, total_bytes: int, done_bytes: int, tokens: int) -> None:
        self._began_at, self._ended_at = time.perf_counter(), 0.0
        self._total_bytes, self._done_bytes, self._earlier_bytes = total_bytes, done_bytes, done_bytes

    def on_part(self, name: str, *, part_bytes: int, tokens: int, text_bytes: int) -> None:
        self.parts += 1
        self._done_bytes += part_bytes
        self.tokens += tokens
        self.text_bytes += text_bytes

    def end(self) -> None:
        self._ended_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the workers were ready."""
        return max(1e-9, (self._ended_at or time.perf_counter()) - self._began_at)

    @property
    def share_done(self) -> float | None:
        """Of the whole corpus, by its estimated size; None is unknown."""
        return min(1.0, self._done_bytes / self._total_bytes) if self._total_bytes else None

    def line(self) -> str:
        """Speed and time left."""
        speed = f"{self.text_bytes / self.seconds / 1e6:,.1f} MB/s, {self.tokens / self.seconds:,.0f} tokens/s"
        fresh = self._done_bytes - self._earlier_bytes
        left = self._total_bytes - self._done_bytes
        remaining = f", {readable_seconds(left * self.seconds / fresh)} left" if fresh and left > 0 else ""
        return f"{self.tokens:,} tokens, {speed}{remaining}"


class MeterLines(Meter):
    """A plain line every ten seconds, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._spoke_at = time.monotonic()

    def on_part(self, name: str, *, part_bytes: int, tokens: int, text_bytes: int) -> None:
        super().on_part(name, part_bytes=part_bytes, tokens=tokens, text_bytes=text_bytes)
        if time.monotonic() - self._spoke_at >= SECONDS_BETWEEN_LINES:
            share = "" if self.share_done is None else f"{self.share_done:.0%}: "
            print(share + self.line(), file=self._stream, flush=True)
            self._spoke_at = time.monotonic()


class MeterBar(Meter):
    """A bar, for a terminal."""

    def __init__(self) -> None:
        super().__init__()
        columns = (TextColumn("preparing"), BarColumn(bar_width=None), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True))

    def begin(self, *, total_bytes: int, done_bytes: int, tokens: int) -> None:
        super().begin(total_bytes=total_bytes, done_bytes=done_bytes, tokens=tokens)
        self._bar.start()
        self._task = self._bar.add_task("starting", total=total_bytes or None, completed=done_bytes)

    def on_part(self, name: str, *, part_bytes: int, tokens: int, text_bytes: int) -> None:
        super().on_part(name, part_bytes=part_bytes, tokens=tokens, text_bytes=text_bytes)
        self._bar.update(self._task, advance=part_bytes, description=self.line())

    def end(self) -> None:
        super().end()
        self._bar.stop()


def meter(*, quiet: bool) -> Meter:
    """The meter for whoever watches, if anybody does."""
    if quiet:
        return Meter()
    return MeterBar() if Console(stderr=True).is_terminal else MeterLines()
