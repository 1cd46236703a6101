"""Who watches a run: metrics on disk, and progress in the terminal. Watching changes nothing."""

import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fromscratch.files import readable_seconds

SECONDS_BETWEEN_LINES = 10.0


class Observer(Protocol):
    """Told what happened; what it does is its own affair."""

    def begin(self, *, step: int, num_steps: int) -> None:
        """Training starts or goes on after ``step`` steps."""

    def on_step(self, record: dict[str, Any]) -> None:
        """A step's metrics are known (they may arrive a step late)."""

    def on_event(self, event: str, facts: dict[str, Any]) -> None:
        """Something other than a step happened: evaluation, sample, checkpoint, skipped step, signal."""

    def end(self) -> None:
        """Training has stopped, for whatever reason."""


@dataclass
class SilentObserver:
    """Watches without a word; a base for observers that care about one thing."""

    def begin(self, *, step: int, num_steps: int) -> None:
        pass

    def on_step(self, record: dict[str, Any]) -> None:
        pass

    def on_event(self, event: str, facts: dict[str, Any]) -> None:
        pass

    def end(self) -> None:
        pass


EVENT_LINES = {
    "evaluation": "step {step}: held-out loss {loss:.4f}",
    "sample": "step {step}: {text!r}",
    "nonfinite": "step {step}: gradients were not finite; the step was skipped",
    "smaller-micro-batch": "step {step}: out of memory; now {pieces} pieces per step, which changes no result",
    "spike": "step {step}: loss {loss:.3f} is a spike",
    "rollback": "step {step}: back to step {to_step}, past {skipped_batches} batches",
    "checkpoint-failed": "{reason}",
    "checkpoint-skipped": "checkpoint passed over: {reason}",
    "checkpoint-recovered": "{name}: put back, an interrupted save had set it aside",
    "link-ignored": "link ignored: {reason}",
    "lock-taken-over": "the trainer here before died without a word; its lock was taken over",
    "config-changed": "config changed: {changes}",
    "signal": "step {step}: {signal}, saving and stopping",
}
"""What is said of an event in the terminal; of the others nothing is said."""


def describe_event(event: str, facts: dict[str, Any]) -> str:
    """One line for people, or nothing for events that only the record needs."""
    return EVENT_LINES.get(event, "").format(**facts)


class ProgressBar(SilentObserver):
    """A bar with loss, tokens/s and time left, for a terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def begin(self, *, step: int, num_steps: int) -> None:
        self._bar.start()
        self._task = self._bar.add_task("training", total=num_steps, completed=step, loss="-", speed="-")

    def on_step(self, record: dict[str, Any]) -> None:
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
        speed = f"{record['tokens_per_second']:,.0f}"
        self._bar.update(self._task, completed=record["step"], loss=loss, speed=speed)

    def on_event(self, event: str, facts: dict[str, Any]) -> None:
        if line := describe_event(event, facts):
            self._bar.console.print(line, markup=False, highlight=False)

    def end(self) -> None:
        self._bar.stop()


class ProgressLines(SilentObserver):
    """A plain line every ten seconds, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._spoke_at = time.monotonic()

    def begin(self, *, step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._print(f"training: step {step} of {num_steps}")

    def on_step(self, record: dict[str, Any]) -> None:
        if time.monotonic() - self._spoke_at >= SECONDS_BETWEEN_LINES:
            loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
            remaining = (self._num_steps - record["step"]) * record["seconds"]
            self._print(
                f"step {record['step']} of {self._num_steps}: loss {loss}, "
                f"{record['tokens_per_second']:,.0f} tokens/s, about {readable_seconds(remaining)} left"
            )

    def on_event(self, event: str, facts: dict[str, Any]) -> None:
        if line := describe_event(event, facts):
            self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
        self._spoke_at = time.monotonic()


def terminal_observer() -> Observer:
    """A bar where a person watches, lines where a file does."""
    return ProgressBar() if Console(stderr=True).is_terminal else ProgressLines()
