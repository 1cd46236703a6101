"""Observers of a run, and the two that show progress in a terminal. An observer changes nothing."""

import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fromscratch.files import readable_seconds
from fromscratch.runs.states import Event, losses_by_weights

SECONDS_BETWEEN_LINES = 10.0
WINDOW_STEPS = 50


class Observer(Protocol):
    """Receives what happens in a run."""

    def begin(self, *, step: int, num_steps: int) -> None:
        """Training starts, or continues after ``step`` steps."""

    def on_step(self, record: dict[str, Any]) -> None:
        """The metrics of a step; they may arrive one step late."""

    def on_event(self, event: Event, facts: dict[str, Any]) -> None:
        """Something other than a step: evaluation, sample, checkpoint, non-finite step, signal."""

    def end(self) -> None:
        """Training has stopped, for any reason."""


@dataclass
class SilentObserver:
    """Base class with callbacks that do nothing."""

    def begin(self, *, step: int, num_steps: int) -> None:
        pass

    def on_step(self, record: dict[str, Any]) -> None:
        pass

    def on_event(self, event: Event, facts: dict[str, Any]) -> None:
        pass

    def end(self) -> None:
        pass


EVENT_LINES = {
    Event.EVALUATION: "step {step}: held-out loss {loss:.4f}",
    Event.SAMPLE: "step {step}: {text!r}",
    Event.HEAD_UNTIED: "step {step}: the head now has a matrix of its own; the model has {parameters:,} parameters",
    Event.NONFINITE: "step {step}: gradients were not finite; the step was skipped",
    Event.SMALLER_MICRO_BATCH: "step {step}: out of memory; now {pieces} micro-batches per step, with the same result",
    Event.SPIKE: "step {step}: loss {loss:.3f} is a spike",
    Event.ROLLBACK: "step {step}: back to step {to_step}, {skipped_batches} batches skipped",
    Event.CHECKPOINT_FAILED: "{reason}",
    Event.CHECKPOINT_SKIPPED: "checkpoint skipped: {reason}",
    Event.CHECKPOINT_RECOVERED: "{name}: restored; an interrupted save had moved it aside",
    Event.LINK_IGNORED: "link ignored: {reason}",
    Event.LOCK_TAKEN_OVER: "the process that trained here before was killed; its lock was taken over",
    Event.CONFIG_CHANGED: "config changed: {changes}",
    Event.STOPPED_EARLY: "step {step}: held-out loss has not fallen since step {best_step}; stopping early",
    Event.SIGNAL: "step {step}: {signal}, saving and stopping",
}
"""What the terminal shows of an event. The other events are not shown."""


def describe_event(event: Event, facts: dict[str, Any]) -> str:
    """One line for the terminal; empty for events that are not shown."""
    line = EVENT_LINES.get(event, "").format(**facts)
    if event == Event.EVALUATION and (losses := losses_by_weights(facts)):
        line += f" ({', '.join(f'{name} {loss:.4f}' for name, loss in losses.items())})"
    return line


def describe_start(step: int, num_steps: int) -> str:
    """One line for the terminal: where a run begins or continues."""
    return f"continuing at step {step} of {num_steps}" if step else f"training: step 0 of {num_steps}"


class Pace:
    """Speed and time left, over the last ``WINDOW_STEPS`` steps of a session.

    Args:
        total_tokens: of the whole run; without it, the steps that are left are taken to be as long as the last ones.
    """

    def __init__(self, num_steps: int, total_tokens: int | None = None) -> None:
        self._num_steps, self._total_tokens = num_steps, total_tokens
        self._seconds: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._tokens: deque[float] = deque(maxlen=WINDOW_STEPS)

    def add(self, record: dict[str, Any]) -> str:
        """Takes in a step's record. Returns the loss, the speed and the time left as text."""
        self._seconds.append(record["seconds"])
        self._tokens.append(record["seconds"] * record["tokens_per_second"])
        seconds = sum(self._seconds)
        left = (self._num_steps - record["step"]) * seconds / len(self._seconds)
        if self._total_tokens is not None:
            left = (self._total_tokens - record["tokens"]) * seconds / sum(self._tokens)
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
        return f"loss {loss}, {sum(self._tokens) / seconds:,.0f} tokens/s, about {readable_seconds(left)} left"


class ProgressBar(SilentObserver):
    """A progress bar with loss, tokens/s and time left, for a terminal."""

    def __init__(self, total_tokens: int | None = None) -> None:
        self._total_tokens = total_tokens
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=Console(stderr=True),
        )

    def begin(self, *, step: int, num_steps: int) -> None:
        self._pace = Pace(num_steps, self._total_tokens)
        if step:
            self._bar.console.print(describe_start(step, num_steps), markup=False, highlight=False)
        self._bar.start()
        self._task = self._bar.add_task("training", total=num_steps, completed=step, pace="")

    def on_step(self, record: dict[str, Any]) -> None:
        self._bar.update(self._task, completed=record["step"], pace=self._pace.add(record))

    def on_event(self, event: Event, facts: dict[str, Any]) -> None:
        if line := describe_event(event, facts):
            self._bar.console.print(line, markup=False, highlight=False)

    def end(self) -> None:
        self._bar.stop()


class ProgressLines(SilentObserver):
    """A line every ten seconds and one for each event, for log files and pipes."""

    def __init__(self, stream: TextIO | None = None, total_tokens: int | None = None) -> None:
        self._total_tokens = total_tokens
        self._stream = stream or sys.stderr
        self._printed_at = time.monotonic()

    def begin(self, *, step: int, num_steps: int) -> None:
        self._num_steps, self._pace = num_steps, Pace(num_steps, self._total_tokens)
        self._print(describe_start(step, num_steps))

    def on_step(self, record: dict[str, Any]) -> None:
        pace = self._pace.add(record)
        if time.monotonic() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print(f"step {record['step']} of {self._num_steps}: {pace}")
            self._printed_at = time.monotonic()

    def on_event(self, event: Event, facts: dict[str, Any]) -> None:
        if line := describe_event(event, facts):
            self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def terminal_observer(total_tokens: int | None = None) -> Observer:
    """Returns a progress bar for a terminal, lines for a file or a pipe.

    Args:
        total_tokens: of the whole run, for the time left of a run with a batch ramp.
    """
    is_terminal = Console(stderr=True).is_terminal
    return ProgressBar(total_tokens) if is_terminal else ProgressLines(total_tokens=total_tokens)
