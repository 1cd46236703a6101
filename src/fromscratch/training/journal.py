"""What a run writes down and whom it tells: metrics, events, status, observers.

Of several processes only the main one writes; in the others every method does nothing.
"""

from typing import Any

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import RecordWriter
from fromscratch.training.observers import Observer


class Journal:
    """The records of one session of a run, open from ``begin`` to ``end``."""

    def __init__(self, run: RunDirectory, observers: list[Observer], *, writes: bool = True) -> None:
        self.run = run
        self.writes = writes
        self._observers = observers if writes else []
        self._metrics: RecordWriter | None = None

    def begin(self, *, step: int, num_steps: int) -> None:
        """Opens the metrics, without the steps that will be done again."""
        if self.writes:
            self.go_back_to(step)
            self.status("running", step=step, num_steps=num_steps)
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

    def record(self, facts: dict[str, Any]) -> None:
        """Adds a step's line to the metrics."""
        if self._metrics is not None:
            self._metrics.write(facts)
        for observer in self._observers:
            observer.on_step(facts)

    def announce(self, event: str, **facts: Any) -> None:
        """Puts an event on the record."""
        if self.writes:
            self.run.log_event(event, **facts)
        for observer in self._observers:
            observer.on_event(event, facts)

    def status(self, state: str, *, step: int, num_steps: int, reason: str = "") -> None:
        """Says how the run stands."""
        if self.writes:
            self.run.write_status(state, step=step, num_steps=num_steps, reason=reason)

    def flush(self) -> None:
        """Waits until every metric is on the disk."""
        if self._metrics is not None:
            self._metrics.flush()

    def end(self) -> None:
        """Closes everything."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        for observer in self._observers:
            observer.end()
