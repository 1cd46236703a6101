"""Time per step, speed and time left: measured over what they are said of."""

import io
import time
from pathlib import Path
from typing import Any

import pytest

from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event
from fromscratch.training.observers import Pace, ProgressLines
from fromscratch.training.step import Stepper, StepResult
from tests.small import run_small, write_run_file

STEP_SECONDS = 0.02


def record(step: int, seconds: float) -> dict[str, Any]:
    return {"step": step, "loss": 2.0, "seconds": seconds, "tokens_per_second": 100 / seconds}


def test_every_step_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last one before an evaluation, a sample, a checkpoint and the end."""
    take = Stepper.take

    def slow(stepper: Stepper, *arguments: Any, **options: Any) -> StepResult:
        result = take(stepper, *arguments, **options)
        time.sleep(STEP_SECONDS)
        return result

    monkeypatch.setattr(Stepper, "take", slow)
    began = time.perf_counter()
    run, summary = run_small(write_run_file(tmp_path, train={"evaluate_every": 2, "sample_every": 3}))
    elapsed = time.perf_counter() - began
    seconds = [r["seconds"] for r in read_records(run.metrics)]
    assert len(seconds) == 20 and min(seconds) >= STEP_SECONDS
    assert sum(seconds) == pytest.approx(summary.seconds) and sum(seconds) < elapsed
    for r in read_records(run.metrics):
        assert r["tokens_per_second"] * r["seconds"] == pytest.approx(8 * 16)


def test_speed_and_time_left_come_from_a_window() -> None:
    pace = Pace(num_steps=1_000)
    for step in range(1, 200):
        text = pace.add(record(step, 5.0))
    for step in range(200, 300):
        text = pace.add(record(step, 0.1 if step % 2 else 0.3))
    assert text == "loss 2.000, 500 tokens/s, about 2 minutes left"  # 701 steps of 0.2 s


def test_frequent_events_do_not_silence_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    lines = ProgressLines(stream)
    lines.begin(step=0, num_steps=100)
    for step in range(1, 13):
        now[0] += 2.0
        lines.on_event(Event.EVALUATION, {"step": step, "loss": 3.0})
        lines.on_step(record(step, 2.0))
    paces = [line for line in stream.getvalue().splitlines() if "tokens/s" in line]
    assert [line.partition(":")[0] for line in paces] == ["step 5 of 100", "step 10 of 100"]
    assert paces[0].endswith("loss 2.000, 50 tokens/s, about 3 minutes left")
