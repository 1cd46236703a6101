"""Records in ``cost.json`` where the seconds of a session went and what an hour costs."""

import statistics
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import to_strict_json, write_atomically
from fromscratch.runs.costs import SessionCost, read_sessions
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import Event
from fromscratch.session.placement import Placement
from fromscratch.training.observers import SilentObserver
from fromscratch.training.time_spent import Purpose, TimeSpent

TYPICAL_STEPS = 9  # after the first one; their median is the time of a step without compilation


@dataclass(frozen=True)
class Billing:
    """When a session began, and its price. Neither is in the run file, because they do not change the result."""

    dollars_per_hour: float | None = None
    """Price of all machines of the session together."""
    began: float = field(default_factory=time.perf_counter)
    """Instant of ``time.perf_counter`` from which the set-up counts."""
    began_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class CostRecorder(SilentObserver):
    """Observer that writes ``cost.json`` at every checkpoint and at the end: earlier sessions and this one.

    A file that cannot be read is renamed to ``cost.json.damaged``.
    """

    def __init__(self, run: RunDirectory, placement: Placement, billing: Billing, spent: TimeSpent) -> None:
        self._run, self._placement, self._billing, self._spent = run, placement, billing, spent
        self._earlier: list[SessionCost] = []
        self._first_step = self._last_step = 0
        self._set_up_seconds = self._training_seconds = 0.0
        self._first_seconds: list[float] = []

    def begin(self, *, step: int, num_steps: int) -> None:
        self._set_up_seconds = time.perf_counter() - self._billing.began
        self._first_step = self._last_step = step
        try:
            self._earlier = read_sessions(self._run)
        except DataError:
            self._run.cost.replace(self._run.cost.with_name(f"{self._run.cost.name}.damaged"))

    def on_step(self, record: dict[str, Any]) -> None:
        self._last_step = record["step"]
        self._training_seconds += record["seconds"]
        if len(self._first_seconds) <= TYPICAL_STEPS:
            self._first_seconds.append(record["seconds"])

    def on_event(self, event: Event, facts: dict[str, Any]) -> None:
        if event == Event.CHECKPOINT:
            self._write()

    def end(self) -> None:
        self._write()

    def _write(self) -> None:
        sessions = [asdict(session) for session in (*self._earlier, self.session())]
        write_atomically(self._run.cost, to_strict_json({"sessions": sessions}, indent=1))

    def session(self) -> SessionCost:
        """Returns the cost of this session so far."""
        between, compiles = self._spent.seconds, self._placement.acceleration.compile
        slow_start = self._slow_start() if compiles else 0.0
        probe = between[Purpose.PROBE]
        known = {
            "set_up": self._set_up_seconds + (0.0 if compiles else probe),
            "compilation": slow_start + (probe if compiles else 0.0),
            "training": self._training_seconds - slow_start,
            "evaluation": between[Purpose.EVALUATION],
            "checkpoints": between[Purpose.CHECKPOINTS],
        }
        total = time.perf_counter() - self._billing.began
        return SessionCost(
            began_at=self._billing.began_at,
            device_name=self._placement.hardware.name,
            devices=self._placement.world_size,
            first_step=self._first_step,
            last_step=self._last_step,
            seconds={**known, "other": max(0.0, total - sum(known.values()))},
            dollars_per_hour=self._billing.dollars_per_hour,
        )

    def _slow_start(self) -> float:
        """Returns the seconds by which the first step, which compiles, exceeds a typical one."""
        first, *others = self._first_seconds or [0.0]
        return max(0.0, first - statistics.median(others)) if others else 0.0
