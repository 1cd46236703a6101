"""Signals to the launcher. Real processes, real signals."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from fromscratch.processes.launcher import launch_measurement
from fromscratch.runs.directory import RunDirectory
from fromscratch.training.observers import ProgressLines
from tests.processes.forked import Command, Fork, agent, fromscratch
from tests.processes.test_distributed import TIMEOUT, long_run, wait_for_step

SET_CHILD_SUBREAPER = 36  # of prctl
MAX_SECONDS = 60.0  # generous: without the fix, workers live for 20 minutes
TRAIN = ("train", "small.toml", "--device", "cpu")
WORKER = """\
#!/bin/sh
trap 'sleep 1; echo hangup > end-$RANK; exit 0' HUP
trap 'echo terminated > end-$RANK; exit 0' TERM
echo $$ > started-$RANK.tmp
mv started-$RANK.tmp started-$RANK
while :; do sleep 0.05; done
"""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def launch_shells(hangup: signal.Handlers) -> None:
    """The launcher of ``--processes 2``; its workers are shells that write down which signal ends them."""
    signal.signal(signal.SIGHUP, hangup)
    sys.executable = str(Path("worker").resolve())
    monitor = LocalElasticAgent._monitor_workers

    def monitor_workers(self: LocalElasticAgent, group: WorkerGroup) -> RunResult:
        Path("monitored").touch()  # torchrun's agent loses workers if a signal interrupts it while it starts them
        return monitor(self, group)

    LocalElasticAgent._monitor_workers = monitor_workers  # type: ignore[method-assign]
    sys.exit(launch_measurement([], processes=2))


@pytest.fixture
def start_shells(tmp_path: Path) -> Callable[[signal.Handlers], Fork]:
    def start(hangup: signal.Handlers) -> Fork:
        (tmp_path / "worker").write_text(WORKER)
        (tmp_path / "worker").chmod(0o755)
        launcher = Fork(Command(launch_shells, (hangup,), tmp_path))
        wait_until(lambda: all((tmp_path / name).exists() for name in ("started-0", "started-1", "monitored")))
        return launcher

    return start


def ends(folder: Path) -> list[str]:
    return [(folder / f"end-{rank}").read_text().strip() for rank in range(2)]


def test_a_hangup_of_the_launcher_stops_its_workers_however_often_it_comes(
    tmp_path: Path, start_shells: Callable[[signal.Handlers], Fork]
) -> None:
    """A terminal that closes sends SIGHUP twice; the launcher still waits for the workers."""
    launcher = start_shells(signal.SIG_DFL)
    launcher.send(signal.SIGHUP)
    time.sleep(0.3)
    launcher.send(signal.SIGHUP)
    assert launcher.wait() == 128 + signal.SIGHUP, launcher.stderr
    assert ends(tmp_path) == ["hangup", "hangup"]


def test_with_nohup_neither_launcher_nor_workers_stop_at_a_hangup(
    tmp_path: Path, start_shells: Callable[[signal.Handlers], Fork]
) -> None:
    launcher = start_shells(signal.SIG_IGN)
    launcher.send(signal.SIGHUP)
    for rank in range(2):
        os.kill(int((tmp_path / f"started-{rank}").read_text()), signal.SIGHUP)
    launcher.send(signal.SIGTERM)
    assert launcher.wait() == 128 + signal.SIGTERM, launcher.stderr
    assert ends(tmp_path) == ["terminated", "terminated"]


def test_a_hangup_of_torchrun_stops_the_run_and_saves(tmp_path: Path) -> None:
    path = long_run(tmp_path)
    torchrun = Fork(Command(agent, (["--nproc-per-node=2"], fromscratch, *TRAIN), tmp_path, TIMEOUT))
    wait_for_step(path / "metrics.jsonl", 5)
    torchrun.send(signal.SIGHUP)
    torchrun.wait()
    assert_saved(path, "SIGHUP")


def hang_up(hangup: signal.Handlers, *arguments: str) -> None:
    """Trains; at step 5 it gets SIGHUP twice, and SIGTERM with it, or some steps later where SIGHUP is ignored."""
    signal.signal(signal.SIGHUP, hangup)
    on_step = ProgressLines.on_step

    def signalled(self: ProgressLines, record: dict[str, Any]) -> None:
        on_step(self, record)
        if record["step"] == 5:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
        if record["step"] == (8 if hangup == signal.SIG_IGN else 5):
            signal.raise_signal(signal.SIGTERM)

    ProgressLines.on_step = signalled  # type: ignore[method-assign]
    fromscratch(*arguments)


@pytest.mark.parametrize(("hangup", "reason"), [(signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, "SIGTERM")])
def test_a_hangup_stops_a_run_unless_it_is_ignored(tmp_path: Path, hangup: signal.Handlers, reason: str) -> None:
    """A session that ends may send SIGHUP twice and SIGTERM after it: all together they are one request."""
    path = long_run(tmp_path)
    run = Fork(Command(hang_up, (hangup, *TRAIN), tmp_path))
    assert run.wait() == 75, run.stderr
    assert_saved(path, reason)


def assert_saved(path: Path, reason: str) -> None:
    status = RunDirectory(path).read_status()
    assert status.state == "stopped" and status.reason in (reason, "asked by another process")
    assert [entry.name for entry in (path / "checkpoints").glob("step-*")] == [f"step-{status.step:08}"]
