"""``fromscratch`` and torchrun's agents, forked from one process that has loaded everything.

Loading torch takes longer than most runs of these tests. So a fork server loads it once, every command is a fork of
it, and torchrun's agent forks its workers (``--start-method fork``). Agent, store, gloo and signals are the real ones.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

ROOT = Path(__file__).parents[2]
PATH = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
CLONE_NEWNET = 0x40000000
SET_PARENT_DEATH_SIGNAL = 1  # of prctl


@dataclass(frozen=True)
class Command:
    """What a fork does."""

    run: Callable[..., None]
    arguments: tuple[Any, ...]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    network: str = ""
    """Name of the network namespace to enter; empty keeps the present one."""
    threads: int = 1
    """Of torch."""


class Fork:
    """A process that executes a command."""

    def __init__(self, command: Command) -> None:
        self._log = command.folder / f"fork-{uuid.uuid4().hex}"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"{__package__}.preloaded"])
        with pytest.MonkeyPatch.context() as patched:
            for name, value in PATH.items():
                patched.setenv(name, value)  # read when the first fork starts the fork server
            self.process: ForkServerProcess = context.Process(target=execute, args=(command, self._log))
            self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Signals the process."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 110.0) -> int:
        """The exit code."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"not finished within {seconds} s: {self.stderr}")
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        """What the process and its workers wrote to stdout."""
        return self._log.with_suffix(".out").read_text()

    @property
    def stderr(self) -> str:
        """What the process and its workers wrote to stderr."""
        return self._log.with_suffix(".err").read_text()


def execute(command: Command, log: Path) -> None:
    """In the fork: sets up the process, and runs the command."""
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if command.network:
        with Path("/run/netns", command.network).open() as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0
    torch.set_num_threads(command.threads)
    os.chdir(command.folder)
    os.environ.update(PATH | command.environment)
    command.run(*command.arguments)


def fromscratch(*arguments: str) -> None:
    """The command line."""
    from fromscratch.cli.main import main

    sys.argv = ["fromscratch", *arguments]
    main()


def agent(options: list[str], worker: Callable[..., None], *arguments: Any) -> None:
    """A torchrun agent, whose workers call ``worker(*arguments)``."""
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-id={uuid.uuid4().hex}", "--rdzv-endpoint=localhost:0"]
    config, _, _ = config_from_args(parse_args(["--start-method=fork", *rendezvous, *options, "worker"]))
    elastic_launch(config, entrypoint=work)(worker, *arguments)


def work(worker: Callable[..., None], *arguments: Any) -> None:
    """In a worker: what ``python worker.py`` would do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, 0, 0, 0, 0)  # set by torch.multiprocessing
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    Path(f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    try:
        worker(*arguments)
    except SystemExit as end:
        if end.code:
            raise
