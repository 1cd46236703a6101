"""Reports a run to other tools while it trains (``[train] report_to``). No tool can stop or slow the run."""

import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.export import held_out_losses
from fromscratch.runs.sinks import Sink, numbers_in, open_sink
from fromscratch.runs.states import Event
from fromscratch.training.observers import Observer, SilentObserver
from fromscratch.training.profiling import TRACE_FILE, StepProfiler

MAX_QUEUED = 10_000
CLOSE_SECONDS = 30.0


class Reporter(SilentObserver):
    """Observer that hands numbers to a tool in a background thread.

    A tool that raises an error is told nothing more. A tool that is slow loses what a full queue cannot take, and one
    that hangs is left behind at the end. Either is said once.
    """

    def __init__(self, tool: str, open_tool: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        self._tool, self._open, self._warn = tool, open_tool, warn
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._stdout = sys.stdout

    def begin(self, *, step: int, num_steps: int) -> None:
        self._thread = threading.Thread(target=self._work, name=f"report to {self._tool}", daemon=True)
        self._thread.start()

    def on_step(self, record: dict[str, Any]) -> None:
        self._put(record["step"], numbers_in(record))

    def on_event(self, event: Event, facts: dict[str, Any]) -> None:
        if event == Event.EVALUATION:
            self._put(facts["step"], numbers_in(held_out_losses(facts)))

    def end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            sys.stdout = self._stdout  # the tool may have redirected it
            self._warn(f"report_to {self._tool}: does not answer; not all numbers were reported")
        elif self._lost:
            self._warn(f"report_to {self._tool}: was too slow; {self._lost:,} records were not reported")

    def _put(self, step: int, numbers: dict[str, float]) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait((step, numbers))
        except queue.Full:
            self._lost += 1

    def _work(self) -> None:
        try:
            sink = self._open()
            while (item := self._queue.get()) is not None:
                sink.log(*item)
            sink.close()
        except BaseException as error:  # a tool may even raise SystemExit
            self._warn(f"report_to {self._tool}: {error or type(error).__name__}; nothing more is reported there")


def session_observers(
    tools: tuple[str, ...], run: RunDirectory, profiled_steps: int | None, warn: Callable[[str], None]
) -> list[Observer]:
    """Returns the observers that a run has wherever it is started from: other tools, and a profiler if asked for."""
    profilers = [StepProfiler(run.path / TRACE_FILE, profiled_steps)] if profiled_steps is not None else []
    return [*reporters(tools, run, warn), *profilers]


def reporters(tools: tuple[str, ...], run: RunDirectory, warn: Callable[[str], None]) -> list[Observer]:
    """Returns one observer per tool; those that write files do so in ``reports/TOOL`` of the run."""
    return [
        Reporter(tool, partial(open_sink, tool, run.name, run.path / "reports" / tool), warn)
        for tool in dict.fromkeys(tools)
    ]
