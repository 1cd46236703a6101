"""The records of a run: metrics, events and status on disk, and the observers that are told of them.

Only the main process writes. In the others every method does nothing.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import RecordWriter, now_as_text
from fromscratch.runs.states import Event, RunState
from fromscratch.training.observers import Observer


class Journal:
    """The records of one session of a run, open from ``begin`` to ``end``."""

    def __init__(self, run: RunDirectory, observers: list[Observer], *, writes: bool = True) -> None:
        self.run = run
        self.writes = writes
        self._observers = observers if writes else []
        self._metrics: RecordWriter | None = None
        self._unlogged: list[tuple[Event, dict[str, Any]]] = []

    def begin(self, *, step: int, num_steps: int) -> None:
        """Opens the metrics, without the steps that will be taken again."""
        if self.writes:
            self.go_back_to(step)
            self.write_status(RunState.RUNNING, step=step, num_steps=num_steps)
        for observer in self._observers:
            observer.begin(step=step, num_steps=num_steps)

    def go_back_to(self, step: int) -> None:
        """Drops the records of later steps."""
        if not self.writes:
            return
        if self._metrics is not None:
            self._metrics.close()
        self.run.forget_after(step)
        self._metrics = RecordWriter(self.run.metrics)

    def record_step(self, facts: dict[str, Any]) -> None:
        """Appends a step's line to the metrics."""
        if self._metrics is not None:
            self._metrics.write(facts)
        self._notify(lambda observer: observer.on_step(facts))

    def record_event(self, event: Event, **facts: Any) -> None:
        """Appends an event. One that a full disk refuses is written together with the next one."""
        if self.writes:
            self._unlogged.append((event, {"at": now_as_text(), **facts}))
        with suppress(OSError):
            while self._unlogged:
                self.run.log_event(self._unlogged[0][0], **self._unlogged[0][1])
                del self._unlogged[0]
        self._notify(lambda observer: observer.on_event(event, facts))

    def _notify(self, what: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            with suppress(OSError):  # a full disk or a closed terminal must not stop training
                what(observer)

    def write_status(self, state: RunState, *, step: int, num_steps: int, reason: str = "") -> None:
        """Writes the run's state. Raises OSError where the disk refuses it and the run has ended."""
        if self.writes:
            with suppress(OSError) if state == RunState.RUNNING else nullcontext():
                self.run.write_status(state, step=step, num_steps=num_steps, reason=reason)

    def flush(self) -> None:
        """Waits until every metric is on the disk."""
        if self._metrics is not None:
            self._metrics.flush()

    def end(self) -> None:
        """Closes everything."""
        if self._metrics is not None:
            with suppress(OSError):  # the last save has failed for the same reason, and was reported
                self._metrics.close()
            self._metrics = None
        self._notify(lambda observer: observer.end())
