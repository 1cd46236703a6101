"""Progress of a preparation: a bar in a terminal, elsewhere a line every ten seconds."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fromscratch.data.prepare import PreparationObserver
from fromscratch.files import readable_seconds

SECONDS_BETWEEN_LINES = 10.0


class PreparationProgress(PreparationObserver):
    """Counts and shows what this session has done. The clock starts when the workers are ready."""

    def __init__(self, *, quiet: bool) -> None:
        self.parts = self.tokens = self.text_bytes = 0
        self._quiet = quiet
        self._started_at = self._ended_at = self._printed_at = time.perf_counter()
        console = Console(stderr=True)
        columns = (TextColumn("preparing"), BarColumn(bar_width=None), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console) if console.is_terminal and not quiet else None

    def begin(self, *, total_bytes: int, done_bytes: int) -> None:
        self._started_at, self._ended_at = time.perf_counter(), 0.0
        self._total_bytes, self._done_bytes, self._earlier_bytes = total_bytes, done_bytes, done_bytes
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=total_bytes or None, completed=done_bytes)

    def on_part(self, *, part_bytes: int, tokens: int, text_bytes: int) -> None:
        self.parts += 1
        self._done_bytes += part_bytes
        self.tokens += tokens
        self.text_bytes += text_bytes
        if self._bar:
            self._bar.update(self._task, advance=part_bytes, description=self._line())
        elif not self._quiet and time.perf_counter() - self._printed_at >= SECONDS_BETWEEN_LINES:
            share = f"{min(1.0, self._done_bytes / self._total_bytes):.0%}: " if self._total_bytes else ""
            print(share + self._line(), file=sys.stderr, flush=True)
            self._printed_at = time.perf_counter()

    def end(self) -> None:
        self._ended_at = time.perf_counter()
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the workers were ready."""
        return max(1e-9, (self._ended_at or time.perf_counter()) - self._started_at)

    def _line(self) -> str:
        speed = f"{self.text_bytes / self.seconds / 1e6:,.1f} MB/s, {self.tokens / self.seconds:,.0f} tokens/s"
        done, left = self._done_bytes - self._earlier_bytes, self._total_bytes - self._done_bytes
        remaining = f", {readable_seconds(left * self.seconds / done)} left" if done and left > 0 else ""
        return f"{self.tokens:,} tokens, {speed}{remaining}"
