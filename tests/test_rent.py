"""The script for rented machines, with the installed package in the place of a fresh install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fromscratch.runs.directory import RunDirectory
from tests.conftest import REPOSITORY
from tests.small import write_run_file

SCRIPT = REPOSITORY / "scripts" / "rent.sh"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder as the script leaves it after installing."""
    binaries = tmp_path / "home" / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, command in (("python", ""), ("fromscratch", "-m fromscratch")):
        path = binaries / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        path.chmod(0o755)
    return tmp_path / "home"


def rent(machine: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "FROMSCRATCH_FOLDER": str(machine), "WITHOUT_TMUX": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(SCRIPT), *arguments]
    environment |= {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_trains_only_where_that_is_meant(tmp_path: Path, machine: Path) -> None:
    file = str(write_run_file(tmp_path))
    refused = rent(machine, file)
    assert refused.returncode == 2 and "ALLOW_CPU=1" in refused.stderr
    assert not (machine / "runs").exists()
    ended = machine / "ended"
    done = rent(
        machine, file, ALLOW_CPU="1", AT_END=f"touch '{ended}'", SSH_CONNECTION="192.0.2.7 5555 198.51.100.2 2222"
    )
    assert done.returncode == 0, done.stderr
    assert RunDirectory(machine / "runs" / "small").read_status().state == "done" and ended.exists()
    assert "-e 'ssh -p 2222'" in done.stdout and "@198.51.100.2:" in done.stdout


def test_after_the_hours_it_saves_and_stops(tmp_path: Path, machine: Path) -> None:
    file = str(write_run_file(tmp_path, data={"tokens": 400_000 * 128, "epochs": 10_000}))
    ended = machine / "ended"
    hours = f"{8 / 3600:.6f}"
    stopped = rent(machine, file, ALLOW_CPU="1", MAX_HOURS=hours, AT_END=f"touch '{ended}'")
    assert stopped.returncode == 124, "as timeout reports it"
    assert ended.exists()
    run = RunDirectory(machine / "runs" / "small")
    if run.status.exists():  # on a very slow machine the time is over before training begins
        status = run.read_status()
        assert status.state == "stopped" and status.reason == "SIGTERM"


@pytest.mark.parametrize("hours", ["ten", "1.2.3", "-1"])
def test_hours_must_be_a_number(tmp_path: Path, machine: Path, hours: str) -> None:
    refused = rent(machine, str(write_run_file(tmp_path)), ALLOW_CPU="1", MAX_HOURS=hours)
    assert refused.returncode == 2 and f"MAX_HOURS={hours}" in refused.stderr
