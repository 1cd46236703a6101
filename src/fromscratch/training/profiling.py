"""Where the time of a step goes: a Chrome trace of a few steps of a run."""

import os
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fromscratch.training.observers import SilentObserver

STEPS_BEFORE = 3
"""Steps that are left out: they compile, warm caches up, and are told of a step late."""
TRACE_FILE = "trace.json"


class StepProfiler(SilentObserver):
    """Records ``steps`` steps into ``trace.json``, to be opened at ui.perfetto.dev or chrome://tracing.

    Records of steps arrive a step late, so the trace holds whole steps from the fourth or fifth of this
    session on; an evaluation among them is in the trace too and takes the place of one. A run that ends
    before writes what there is.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        self._steps_left = steps
        self._steps_seen = 0
        self._profile: profile | None = None

    def on_step(self, record: dict[str, Any]) -> None:
        self._steps_seen += 1
        if self._steps_seen == STEPS_BEFORE:
            self._start()
        elif self._profile is not None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self._write()

    def end(self) -> None:
        self._write()

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities)
        self._profile.start()

    def _write(self) -> None:
        """Stops recording and puts the trace in place, whole."""
        running, self._profile = self._profile, None
        if running is None:
            return
        running.stop()
        temporary = self._path.with_name(f".{self._path.name}.tmp-{os.getpid()}.json")
        running.export_chrome_trace(str(temporary))
        temporary.replace(self._path)
