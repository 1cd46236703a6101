"""Signals to the launcher, and workers whose launcher is killed. Real processes, real signals."""

import ctypes
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from fromscratch.planning import bench_worker
from fromscratch.processes import watchdog, world
from fromscratch.processes.launcher import launch_measurement
from fromscratch.runs.directory import RunDirectory
from fromscratch.training.observers import ProgressLines
from tests.processes.forked import Command, Fork, agent, fromscratch
from tests.processes.test_distributed import TIMEOUT, launch, long_run, wait_for_step, workers_of
from tests.small import SMALL_RUN
from tests.training.in_saves import in_background

SET_CHILD_SUBREAPER = 36  # of prctl
MAX_SECONDS = 60.0  # generous: without the fix, workers live for 20 minutes
TRAIN = ("train", "small.toml", "--device", "cpu")
WORKER = """\
#!/bin/sh
trap 'touch saving-$RANK; while [ ! -e go-on ]; do sleep 0.05; done; echo hangup > end-$RANK; exit 0' HUP
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
    wait_until(lambda: all((tmp_path / f"saving-{rank}").exists() for rank in range(2)))
    launcher.send(signal.SIGHUP)
    (tmp_path / "go-on").touch()
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


@pytest.fixture
def reaper() -> Iterator[Callable[[int], int]]:
    """Adopts orphans, and returns the exit code of one."""
    libc = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        pytest.skip("needs Linux to adopt orphans")

    def wait(pid: int) -> int:
        ended: list[int] = []

        def has_ended() -> bool:
            found, status = os.waitpid(pid, os.WNOHANG)
            ended.append(status)
            return found == pid

        try:
            wait_until(has_ended)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        return os.waitstatus_to_exitcode(ended[-1])

    yield wait
    libc.prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def kill(launcher: Fork) -> None:
    """Kills the launcher; its workers are orphans at once."""
    launcher.send(signal.SIGKILL)
    launcher.wait()


def pids_in(folder: Path) -> list[int]:
    return [int((folder / f"pid-{rank}").read_text()) for rank in range(2)]


def start_agent(
    folder: Path, worker: Callable[..., None], *arguments: str, mark: str = "pid-"
) -> tuple[Fork, list[int]]:
    """torchrun and its two workers, when each has written a file that begins with ``mark``."""
    torchrun = Fork(Command(agent, (["--nproc-per-node=2"], worker, *arguments), folder))
    wait_until(lambda: all((folder / f"{mark}{rank}").exists() for rank in range(2)))
    wait_until(lambda: all((folder / f"pid-{rank}").read_text() for rank in range(2)))
    return torchrun, pids_in(folder)


def test_workers_end_when_their_launcher_is_killed_as_they_start(tmp_path: Path, reaper: Callable[[int], int]) -> None:
    """Python itself has hardly started in them."""
    long_run(tmp_path)
    launcher = launch(tmp_path, "small.toml", FROMSCRATCH_TEST=str(tmp_path), FROMSCRATCH_TIMEOUT_SECONDS="600")
    wait_until(lambda: len(workers_of(str(tmp_path))) == 2)
    pids = workers_of(str(tmp_path))
    kill(launcher)
    assert [reaper(pid) for pid in pids] == [1, 1]
    assert all(f"error: process {pid} ends, because" in launcher.stderr for pid in pids)


def close_inherited_sockets() -> None:
    """A forked worker holds sockets of the agent's store, which would then outlive the agent. ``exec`` closes them."""
    os.closerange(3, 1024)


def join_without_the_other(*arguments: str) -> None:
    """Rank 0 waits for rank 1 for ever."""
    close_inherited_sockets()
    join = vars(world)["session_store"]

    def joining(*timeout: object) -> object:
        Path(f"joining-{os.environ['RANK']}").touch()
        if os.environ["RANK"] == "1":
            time.sleep(3600)
        return join(*timeout)

    vars(world)["session_store"] = joining
    fromscratch(*arguments)


def test_workers_end_when_torchrun_is_killed_while_they_wait_for_one_another(
    tmp_path: Path, reaper: Callable[[int], int]
) -> None:
    long_run(tmp_path)
    torchrun, pids = start_agent(tmp_path, join_without_the_other, *TRAIN, mark="joining-")
    kill(torchrun)
    assert [reaper(pid) for pid in pids] == [1, 1]


def begin_as_orphan(*arguments: str) -> None:
    """Begins after torchrun has been killed."""
    close_inherited_sockets()
    while os.getppid() == int(Path("torchrun").read_text()):
        time.sleep(0.02)
    fromscratch(*arguments)


def agent_with_orphans(*arguments: str) -> None:
    Path("torchrun").write_text(str(os.getpid()))
    agent(["--nproc-per-node=2"], begin_as_orphan, *arguments)


def test_workers_end_when_torchrun_was_killed_before_they_looked(tmp_path: Path, reaper: Callable[[int], int]) -> None:
    long_run(tmp_path)
    torchrun = Fork(Command(agent_with_orphans, TRAIN, tmp_path))
    wait_until(lambda: all((tmp_path / f"pid-{rank}").exists() for rank in range(2)))
    wait_until(lambda: all((tmp_path / f"pid-{rank}").read_text() for rank in range(2)))
    kill(torchrun)
    assert [reaper(pid) for pid in pids_in(tmp_path)] == [1, 1]


def train_impatiently(*arguments: str) -> None:
    """A save lasts longer than the watchdog waits for a run to end after the store is gone."""
    close_inherited_sockets()
    watchdog.MAX_GRACE_SECONDS = 1.0
    fsync = os.fsync

    def slow(fd: Any) -> None:
        if in_background():
            time.sleep(0.4)
        fsync(fd)

    os.fsync = slow
    fromscratch(*arguments)


def test_training_saves_when_torchrun_is_killed(tmp_path: Path, reaper: Callable[[int], int]) -> None:
    path = long_run(tmp_path)
    torchrun, pids = start_agent(tmp_path, train_impatiently, *TRAIN)
    wait_for_step(path / "metrics.jsonl", 5)
    kill(torchrun)
    assert [reaper(pid) for pid in pids] == [1, 1], torchrun.stderr
    assert_saved(path, "its launcher is gone")
    assert "is stuck here" not in torchrun.stderr


def measure_for_ever(request: dict[str, object]) -> None:
    """A worker of ``bench``, in a fork of the process that measures."""
    parent = os.getpid()
    if os.fork():
        time.sleep(3600)
    sys.stdin = io.StringIO(json.dumps(request | {"parent": parent}))
    Path("pid").write_text(str(os.getpid()))
    bench_worker.main()


def test_a_measurement_ends_when_the_process_that_measures_is_killed(
    tmp_path: Path, reaper: Callable[[int], int]
) -> None:
    request = {
        "model": {**SMALL_RUN["model"], "vocab_size": 256},
        "train": {},
        "case": {"micro_batch": 2, "precision": "fp32"},
        "device": "cpu",
        "threads": 1,
        "steps": 10**9,
        "max_seconds": 1e9,
        "as_memory_probe": False,
    }
    bench = Fork(Command(measure_for_ever, (request,), tmp_path))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    kill(bench)
    assert reaper(int((tmp_path / "pid").read_text())) == 1
