"""``cost.json``: every session, every purpose, kept across resumes; looking changes nothing; dollars by hand."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fromscratch.errors import DataError
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import find_hardware
from fromscratch.runs.costs import PURPOSES, cost_of, read_sessions
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.billing import Billing, CostRecorder
from fromscratch.session.placement import MachineOptions, Placement, place_run
from fromscratch.session.plan import plan_run
from fromscratch.session.run import run_training
from fromscratch.training.loop import Training
from fromscratch.training.time_spent import Purpose, TimeSpent
from tests.command import nothing_written, refused, run_command
from tests.small import run_small, write_run_file


def session(price: float | None, **seconds: float) -> dict[str, Any]:
    known = {**dict.fromkeys(PURPOSES, 0.0), **seconds}
    first = {"began_at": "2026-01-01T00:00:00+00:00", "device_name": "d", "devices": 1, "first_step": 0, "last_step": 5}
    return {**first, "seconds": known, "dollars_per_hour": price}


def run_with(tmp_path: Path, *sessions: dict[str, Any], tokens: int = 500_000) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "one")
    run.create()
    run.config.write_text("")
    run.cost.write_text(json.dumps({"sessions": sessions}))
    run.metrics.write_text(json.dumps({"step": 5, "tokens": tokens, "seconds": 1800.0}) + "\n")
    return run


def test_every_session_of_a_run_is_kept(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=8)
    run_small(file)
    first, second = read_sessions(run)
    assert (first.first_step, first.last_step, second.first_step, second.last_step) == (0, 8, 8, 20)
    for one in (first, second):
        assert list(one.seconds) == list(PURPOSES)
        assert all(one.seconds[purpose] > 0 for purpose in ("set_up", "training", "evaluation", "checkpoints"))
        assert one.seconds["compilation"] == 0.0
    records = [json.loads(line)["seconds"] for line in run.metrics.read_text().splitlines()]
    cost = cost_of(run)
    assert cost.seconds["training"] == pytest.approx(sum(records)) and cost.tokens == 20 * 8 * 16
    before = run.cost.read_bytes()
    assert run_small(file)[1].outcome == "done"
    assert run.cost.read_bytes() == before  # a command that takes no step costs nothing
    with nothing_written(tmp_path):
        assert run_command("runs", "cost", "run", "--runs-dir", file.parent / "runs").code == 0


def test_seconds_of_a_session_add_up_to_the_clock(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    plan, path = plan_run(file), tmp_path / "runs" / "priced"
    placement = place_run(plan, RunDirectory(path), MachineOptions(device="cpu"))
    begin = time.perf_counter()
    run_training(plan, path, placement, observers=[], billing=Billing(3.5, began=begin - 1000.0))
    (one,) = read_sessions(RunDirectory(path))
    assert 1000.0 < sum(one.seconds.values()) <= 1000.0 + time.perf_counter() - begin
    assert one.seconds["set_up"] > 1000.0 and one.dollars_per_hour == 3.5


def test_a_session_that_fails_is_paid_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(training: Training) -> float:
        if training.state.step == 5:
            raise RuntimeError("the device is gone")
        return 1.0

    monkeypatch.setattr("fromscratch.training.loop._evaluate", broken)
    with pytest.raises(RuntimeError, match="is gone"):
        run_small(write_run_file(tmp_path))
    (one,) = read_sessions(RunDirectory(tmp_path / "runs" / "run"))
    assert one.last_step == 5 and one.seconds["training"] > 0


def test_compilation_is_what_the_first_step_takes_beyond_a_typical_one(tmp_path: Path) -> None:
    for compiles, expected in ((True, (60.0 + 30.0 - 2.0, 8.0)), (False, (0.0, 36.0))):
        spent = TimeSpent()
        spent.seconds[Purpose.PROBE] = 60.0
        placement = Placement(find_hardware("cpu"), 1, acceleration=Acceleration(compile=compiles))
        recorder = CostRecorder(RunDirectory(tmp_path), placement, Billing(), spent)
        recorder.begin(step=0, num_steps=4)
        for step, seconds in enumerate((30.0, 2.0, 1.0, 3.0), 1):
            recorder.on_step({"step": step, "seconds": seconds})
        found = recorder.session().seconds
        assert (found["compilation"], found["training"]) == expected
        assert (found["set_up"] > 60.0) != compiles


def test_a_damaged_file_is_kept_and_training_continues(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=5)
    run.cost.write_text('{"sessions": [{"seconds": 5}]}')
    with pytest.raises(DataError, match="malformed"):
        cost_of(run)
    refused("runs", "cost", "run", "--runs-dir", tmp_path / "runs", code=3, says="cost.json: malformed")
    run_small(file, stop_after=6)
    assert "5" in run.cost.with_name("cost.json.damaged").read_text()
    assert [one.first_step for one in read_sessions(run)] == [5]


def test_dollars_by_hand(tmp_path: Path) -> None:
    paid = session(6.0, set_up=600.0, training=1800.0, evaluation=1200.0)
    run = run_with(tmp_path, paid, session(3.0, training=3600.0))
    cost = cost_of(run)
    assert cost.dollars == pytest.approx(6.0 + 3.0)
    assert cost.dollars_without_evaluation == pytest.approx(4.0 + 3.0)
    assert cost.dollars_per_million_tokens == pytest.approx(18.0)
    assert cost.dollars_per_million_tokens_without_evaluation == pytest.approx(14.0)
    assert cost_of(run, dollars_per_hour=1.0).dollars == pytest.approx(2.0)


def test_an_unknown_price_is_unknown_until_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run_with(tmp_path, session(6.0, training=3600.0), session(None, training=3600.0))
    command = ("runs", "cost", "one", "--runs-dir", tmp_path / "runs")
    assert "unknown" in run_command(*command).out
    (priced,) = json.loads(run_command(*command, "--machine", "8xa100-40gb", "--json").out)
    assert priced["dollars"] == pytest.approx(20.64)
    assert "$20.64 ($20.64)" in run_command(*command, "--dollars-per-hour", "10.32").out
    refused(*command, "--machine", "rtx-3090", code=2, says="between $0.22 and $0.39 per hour; give --dollars-per-hour")
    refused(*command, "--machine", "8xb200", "--dollars-per-hour", "1", code=2, says="leave one out")


def test_a_run_of_an_earlier_version_has_its_training_alone(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    run.cost.unlink()
    cost = cost_of(run, dollars_per_hour=2.0)
    assert not cost.is_complete and cost.seconds["training"] == 1800.0 and cost.dollars == pytest.approx(1.0)
    told = run_command("runs", "cost", "--runs-dir", tmp_path / "runs")
    assert "it has no cost.json" in told.err and "1,800.0 s" in told.out


def test_the_price_comes_from_the_option_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_run_file(tmp_path)
    monkeypatch.setenv("FROMSCRATCH_DOLLARS_PER_HOUR", "2.5")
    command = ("train", file, "--runs-dir", tmp_path / "runs", "--device", "cpu", "-q")
    assert run_command(*command, "--stop-after", 2).code == 75
    assert run_command(*command, "--dollars-per-hour", "4").code == 0
    run = RunDirectory(tmp_path / "runs" / "small")
    assert [one.dollars_per_hour for one in read_sessions(run)] == [2.5, 4.0]
    assert "dollars" not in run.config.read_text()
