"""Runs whose stdout or stderr nobody reads: closed pipes, closed terminals, descriptors closed from the start."""

import fcntl
import os
import pty
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fromscratch.runs.directory import RunDirectory
from tests.processes.forked import Command, Fork, agent, fromscratch
from tests.processes.test_distributed import TIMEOUT, long_run
from tests.small import run_small, write_run_file

TRAIN = ("train", "small.toml", "--device", "cpu")


def with_closed_pipe(descriptors: tuple[int, ...], run: Callable[..., None], *arguments: object) -> None:
    """Runs with descriptors that are pipes without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in descriptors:
        os.dup2(writer, descriptor)
    run(*arguments)


def with_closed_descriptors(run: Callable[..., None], *arguments: object) -> None:
    """Runs as ``fromscratch ... >&- 2>&-`` does."""
    os.closerange(1, 3)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None  # type: ignore[misc]
    run(*arguments)


def unbuffered(*arguments: str) -> None:
    """Runs as with PYTHONUNBUFFERED, where ``print`` itself meets the closed pipe."""
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout.reconfigure(write_through=True)
    fromscratch(*arguments)


def test_a_closed_pipe_does_not_fail_a_run_of_two_processes(tmp_path: Path) -> None:
    """Nor its evaluation. Both streams, as in ``2>&1 | true``; torchrun fails if one process does."""
    write_run_file(tmp_path)
    two = ["--nproc-per-node=2"]
    trained = Fork(Command(with_closed_pipe, ((1, 2), agent, two, fromscratch, *TRAIN), tmp_path, TIMEOUT))
    assert trained.wait() == 0
    assert RunDirectory(tmp_path / "runs" / "small").read_status().state == "done"
    evaluation = ("eval", "loss", "runs/small", "--store", "store", "--device", "cpu", "--json")
    evaluated = Fork(Command(with_closed_pipe, ((1,), agent, two, fromscratch, *evaluation), tmp_path, TIMEOUT))
    assert evaluated.wait() == 0, evaluated.stderr
    assert "BrokenPipe" not in evaluated.stderr


@pytest.mark.parametrize("run", [fromscratch, unbuffered], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(("options", "code"), [((), 0), (("--stop-after", "3"), 75)], ids=["done", "stopped"])
def test_the_outcome_of_a_run_decides_its_exit_code_and_not_a_closed_pipe(
    tmp_path: Path, run: Callable[..., None], options: tuple[str, ...], code: int
) -> None:
    write_run_file(tmp_path)
    trained = Fork(Command(with_closed_pipe, ((1,), run, *TRAIN, *options), tmp_path))
    assert trained.wait() == code
    assert "BrokenPipe" not in trained.stderr
    if code == 0:
        again = Fork(Command(with_closed_pipe, ((1, 2), run, *TRAIN), tmp_path))
        assert again.wait() == 0, "a run that was done before"


def test_a_run_without_stdout_and_stderr_writes_nothing_else_into_its_files(tmp_path: Path) -> None:
    """The descriptors 1 and 2 must not become those of a checkpoint, into which a library would then print."""
    file = write_run_file(tmp_path)
    trained = Fork(Command(with_closed_descriptors, (print_as_a_library, *TRAIN), tmp_path))
    assert trained.wait() == 0
    run, _ = run_small(file, name="small")
    assert b"library" not in b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())


def print_as_a_library(*arguments: str) -> None:
    """While the command runs, a thread writes to descriptor 2 as C code does."""

    def write() -> None:
        while True:
            with suppress(OSError):
                os.write(2, b"a library's message")
            time.sleep(0.001)

    threading.Thread(target=write, daemon=True).start()
    fromscratch(*arguments)


def in_a_terminal_that_closes(*arguments: str) -> None:
    """Runs with a controlling terminal, which closes once the run has taken some steps: SIGHUP, and EIO after it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup
    terminal, own_side = pty.openpty()
    os.setsid()
    fcntl.ioctl(own_side, termios.TIOCSCTTY, 0)
    for descriptor in range(3):
        os.dup2(own_side, descriptor)
    os.close(own_side)
    metrics = Path("runs/small/metrics.jsonl")

    def close() -> None:
        while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 5:
            with suppress(OSError):  # while no process has the terminal open
                if select.select([terminal], [], [], 0.05)[0]:
                    os.read(terminal, 65_536)
        os.close(terminal)

    threading.Thread(target=close, daemon=True).start()
    os.environ["TERM"] = "xterm"
    fromscratch(*arguments)


def test_a_run_whose_terminal_is_closed_saves(tmp_path: Path) -> None:
    path = long_run(tmp_path)
    trained = Fork(Command(in_a_terminal_that_closes, TRAIN, tmp_path))
    assert trained.wait() == 75
    status = RunDirectory(path).read_status()
    assert (status.state, status.reason) == ("stopped", "SIGHUP")
    assert [entry.name for entry in (path / "checkpoints").glob("step-*")] == [f"step-{status.step:08}"]
