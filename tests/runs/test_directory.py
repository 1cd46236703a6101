"""A run directory: names, what it writes, and the lock that keeps two trainers apart."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fromscratch.errors import DataError, UsageError
from fromscratch.runs.directory import RunDirectory, RunStatus, check_run_name, find_run
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState, StepOutcome
from fromscratch.training.gradients import Outcome

HOLD_THE_LOCK = """
import sys
from pathlib import Path
from fromscratch.runs.directory import RunDirectory

with RunDirectory(Path(sys.argv[1])).locked() as took_over:
    print(took_over, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory that has been created."""
    run = RunDirectory(tmp_path / "first")
    run.create()
    return run


@pytest.mark.parametrize(
    "name",
    ["../x", "/abs", "a/b", "", ".", "..", "a\0b", "x" * 101, "x" * 300, "a\n", "a b", "-x", ".x", "_x", "é", "a\\b"],
)
def test_b11_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="must be 1 to 100 letters, digits, dots, dashes or underscores") as caught:
        check_run_name(name)
    assert len(str(caught.value)) < 300 and str(caught.value).endswith("; give another with --name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "0", "gpt2-small.v1_b", "x" * 100, "A..b"])
def test_b11_names_that_are_taken(name: str) -> None:
    assert check_run_name(name) == name


def test_a_folder_of_something_else_becomes_no_run(tmp_path: Path, run: RunDirectory) -> None:
    run.status.write_text("{}")
    (run.path / ".status.json.tmp-1").write_text("")
    run.create()  # a start that failed before its run.toml was written
    project = RunDirectory(tmp_path / "project")
    (project.path / ".git").mkdir(parents=True)
    (project.path / "main.py").write_text("mine")
    with pytest.raises(UsageError, match=r"project: holds no run, but \.git, main\.py; give another --name"):
        project.create()
    assert sorted(path.name for path in project.path.iterdir()) == [".git", "main.py"]


def test_the_object_alone_writes_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "first")
    assert not run.exists()
    assert run.name == "first"
    assert list(tmp_path.iterdir()) == []


def test_create_leaves_only_folders(run: RunDirectory) -> None:
    run.create()
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]
    assert not run.exists()


def test_f5_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"run directory .*first: cannot be written \(Not a directory\)"):
        RunDirectory(tmp_path / "file" / "first").create()


def test_f5_a_read_only_disk(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot be written \(Read-only file system\)"):
        run.create()


def test_config_and_machine_are_kept(run: RunDirectory) -> None:
    run.write_config({"train": {"seed": 7, "clip": {"kind": "norm"}}})
    run.write_machine({"device": "cpu", "peak": float("inf")})
    assert run.exists()
    assert find_run(run.path).path == run.path
    assert tomllib.loads(run.config.read_text()) == {"train": {"seed": 7, "clip": {"kind": "norm"}}}
    assert run.machine.read_text() == '{\n "device": "cpu",\n "peak": null\n}'


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run directory \(it has no run.toml\)"):
        find_run(tmp_path)


def test_status(run: RunDirectory) -> None:
    with pytest.raises(DataError, match=r"status.json: cannot be read"):
        run.read_status()
    run.write_status("running", step=3, num_steps=10)
    run.write_status("stopped", step=4, num_steps=10, reason="interrupted")
    assert run.read_status() == RunStatus(RunState.STOPPED, 4, 10, "interrupted", os.getpid())
    facts = f'"step": 4,\n "num_steps": 10,\n "reason": "interrupted",\n "pid": {os.getpid()}'
    assert run.status.read_text() == f'{{\n "state": "stopped",\n {facts}\n}}'
    with pytest.raises(ValueError, match="finished"):
        run.write_status("finished", step=4, num_steps=10)


@pytest.mark.parametrize(
    ("state", "read"),
    [
        ("", "running"),
        ('"state": "odd", ', "unknown"),
        ('"state": ["done"], ', "unknown"),
        ('"state": null, ', "unknown"),
    ],
)
def test_b40_invalid_values_in_a_status_are_unknown(run: RunDirectory, state: str, read: str) -> None:
    run.status.write_text(f'{{{state}"step": "x", "num_steps": -1, "pid": true}}')
    assert run.read_status() == RunStatus(RunState(read), None, None, "", None)


def test_events_are_appended(run: RunDirectory) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    run.log_event(Event.STARTED, step=0)
    run.log_event(Event.EVALUATION, at="2026-03-01T10:00:00+00:00", step=5, loss=float("nan"))
    first, second = run.events.read_text().splitlines()
    at = json.loads(first)["at"]
    assert first == f'{{"event": "started", "at": "{at}", "step": 0}}'
    assert before <= datetime.fromisoformat(at) <= datetime.now(UTC)
    assert second == '{"event": "evaluation", "at": "2026-03-01T10:00:00+00:00", "step": 5, "loss": null}'


def test_the_labels_of_the_engine_are_those_of_the_records() -> None:
    assert {outcome.label for outcome in Outcome} | {"spike"} == set(StepOutcome)


def test_forget_after_drops_what_will_be_done_again(run: RunDirectory) -> None:
    run.metrics.write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 3}\n{"step": "9"}\n{"note": "no step"}\nnot json\n{"step": 2}\n{"step": 4'
    )
    run.forget_after(2)
    kept = '{"step": 1, "loss": 2.5}\n{"step": "9"}\n{"note": "no step"}\n{"step": 2}\n'
    assert run.metrics.read_text() == kept


def test_forget_after_without_records(run: RunDirectory) -> None:
    run.forget_after(0)
    assert list(read_records(run.metrics)) == []


def test_f29_second_trainer_is_refused_and_told_who_trains(run: RunDirectory) -> None:
    with run.locked() as took_over:
        assert not took_over
        holder = f"pid {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(UsageError, match=f"already being trained by {holder}; wait for it, stop it, or"),
            run.locked(),
        ):
            pass
        assert run.lock.read_text() == f"{holder}\n"
    with run.locked() as took_over:
        assert not took_over


def test_f29_lock_between_processes_and_after_a_death(run: RunDirectory) -> None:
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(run.path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "False\n"
        with pytest.raises(UsageError, match=f"already being trained by pid {other.pid} on"), run.locked():
            pass
        other.kill()
        other.wait()
    with run.locked() as took_over:
        assert took_over
        assert run.lock.read_text().startswith(f"pid {os.getpid()} ")


def test_an_error_inside_frees_the_lock(run: RunDirectory) -> None:
    with pytest.raises(RuntimeError, match="inside"), run.locked():
        raise RuntimeError("inside")
    with run.locked() as took_over:
        assert not took_over


def test_a_disk_without_locks_is_not_taken_for_a_trainer(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match=r"no working file locks \(No locks available\)"), run.locked():
        pass
