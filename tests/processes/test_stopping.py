"""F14, F15: a signal at any moment; and what the status says of every end."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.data.batches import SequenceBatches
from fromscratch.errors import DataError
from fromscratch.machine.memory import DEFAULT_MICRO_BATCH_TOKENS
from fromscratch.models.gpt import GPT
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in, leftovers_in, newest_valid, step_of
from fromscratch.session import parent, setup
from fromscratch.training.observers import SilentObserver
from tests.processes.forked import Command, Fork, fromscratch
from tests.small import run_small, write_run_file
from tests.training.in_saves import call_in_save, in_background
from tests.training.test_resume import assert_same_end


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_small(write_run_file(tmp_path_factory.mktemp("untouched")))[0]


class SignalIn(SilentObserver):
    """Sends SIGTERM once: inside the evaluation or the save of a step, or inside data loading after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str, step: int) -> None:
        self._at, self._step, self._sent = step, 0, threading.Event()
        self._save_comes = where == "save"
        if where == "evaluation":
            losses = GPT.losses

            def evaluated(model: GPT, *arguments: torch.Tensor) -> torch.Tensor:
                if not model.training and self._step >= self._at:
                    self.send()
                return losses(model, *arguments)

            monkeypatch.setattr(GPT, "losses", evaluated)
        elif where == "save":
            call_in_save(monkeypatch, "fsync", step, self.send)
        else:
            read = SequenceBatches.read

            def loaded(*arguments: Any) -> Any:
                if self._step > self._at:  # what is read at the step itself may be read before it is evaluated
                    self.send()
                return read(*arguments)

            monkeypatch.setattr(SequenceBatches, "read", loaded)

    def on_step(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        if self._save_comes and self._step > self._at:
            assert self._sent.wait(60), "no save began"

    def send(self) -> None:
        if not self._sent.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            self._sent.set()


@pytest.mark.parametrize("where", ["evaluation", "save", "data loading"])
def test_f14_sigterm_at_any_moment_leaves_one_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, untouched: RunDirectory
) -> None:
    file = write_run_file(tmp_path)
    with monkeypatch.context() as patched:
        patched.setitem(DEFAULT_MICRO_BATCH_TOKENS, "cpu", 64)  # an evaluation takes three batches
        run, summary = run_small(file, micro_batch=8, observers=[SignalIn(patched, where, 10)])
    assert summary.outcome == "stopped" and 10 <= summary.step <= 13
    newest, skipped = newest_valid(run.checkpoints)
    assert newest is not None and step_of(newest) == summary.step and not skipped
    assert not leftovers_in(run.checkpoints)
    evaluated = [event["step"] for event in read_records(run.events) if event["event"] == "evaluation"]
    assert evaluated == ([0, 5] if where == "evaluation" else [0, 5, 10]), "an evaluation ends at the next batch"
    status = run.read_status()
    assert (status.state, status.step, status.reason) == ("stopped", summary.step, "SIGTERM")
    assert_same_end(untouched, run_small(file)[0])


def test_f14_sigterm_before_step_0_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: RunDirectory
) -> None:
    file, begin = write_run_file(tmp_path), parent.set_first_weights

    def signalled(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        begin(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(setup, "set_first_weights", signalled)
        run, summary = run_small(file)
    assert (summary.outcome, summary.step) == ("stopped", 0)
    assert checkpoints_in(run.checkpoints) == [] and run.read_status().state == "stopped"
    assert_same_end(untouched, run_small(file)[0])


def test_stopping_where_a_checkpoint_was_just_written_writes_no_other(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=5)
    written = (run.checkpoints / "step-00000005" / "manifest.json").stat().st_ino
    run_small(file, stop_after=5)
    assert (run.checkpoints / "step-00000005" / "manifest.json").stat().st_ino == written


def train_with_slow_saves(*arguments: str) -> None:
    """The command line; the save of step 10 takes a minute."""
    fsync = os.fsync

    def slow(fd: Any) -> None:
        if in_background() and any(Path("runs/small/checkpoints").glob(".step-00000010.tmp-*")):
            time.sleep(60)
        fsync(fd)

    os.fsync = slow
    fromscratch("train", "small.toml", *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_f15_a_second_signal_ends_at_once_with_the_older_checkpoint_whole(
    tmp_path: Path, number: signal.Signals, untouched: RunDirectory
) -> None:
    file = write_run_file(tmp_path)
    arguments, threads = ("--device", "cpu", "--micro-batch", "8"), torch.get_num_threads()
    process = Fork(Command(train_with_slow_saves, arguments, tmp_path, threads=threads))
    run = RunDirectory(tmp_path / "runs" / "small")
    deadline = time.monotonic() + 80
    while not any(run.checkpoints.glob(".step-00000010.tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send(number)
    time.sleep(0.3)
    assert process.is_alive(), "the first signal waits for the save"
    sent_at = time.monotonic()
    process.send(number)
    code = process.wait(20)
    assert code == 128 + number and time.monotonic() - sent_at < 5
    status = run.read_status()
    assert status.state == "failed" and f"another {number.name}" in status.reason
    newest, _ = newest_valid(run.checkpoints)
    assert newest is not None and step_of(newest) == 5 and leftovers_in(run.checkpoints)
    assert_same_end(untouched, run_small(file, name="small")[0])
    assert not leftovers_in(run.checkpoints)


class Crash(SilentObserver):
    def on_step(self, record: dict[str, Any]) -> None:
        if record["step"] == 7:
            raise ValueError("something that nobody foresaw")


def test_a_crash_is_in_the_status_and_the_save_before_it_is_whole(tmp_path: Path, untouched: RunDirectory) -> None:
    file = write_run_file(tmp_path)
    with pytest.raises(ValueError, match="nobody foresaw"):
        run_small(file, observers=[Crash()])
    run = RunDirectory(tmp_path / "runs" / "run")
    status = run.read_status()
    assert status.state == "failed" and "ValueError: something that nobody foresaw" in status.reason
    newest, _ = newest_valid(run.checkpoints)
    assert newest is not None and step_of(newest) == 5
    assert_same_end(untouched, run_small(file)[0])


def test_a_run_that_cannot_resume_says_so_in_its_status(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=3)
    (run.checkpoints / "step-00000003" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="no checkpoint is valid"):
        run_small(file)
    status = run.read_status()
    assert status.state == "failed" and "no checkpoint is valid" in status.reason
