"""Worker processes on this machine, one task at a time each.

Every process opens the tokenizer once and encodes on one thread: the tasks keep the cores busy. The
processes are spawned, not forked, because libraries with threads do not survive a fork; a script
that starts them needs the usual ``if __name__ == "__main__":``.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fromscratch.data.engines.base import Facts, Job, LoadTokenizer, Run, Task
from fromscratch.errors import FromScratchError

SECONDS_TO_END = 5.0


class WorkerError(FromScratchError):
    """A worker process died or failed at something that is not the input's fault; exit code 1."""


@dataclass(frozen=True)
class WorkerProcesses:
    """``workers`` processes; ``load`` opens a saved tokenizer in each and must be importable by name."""

    workers: int
    load: LoadTokenizer

    @contextmanager
    def started(self, tokenizer_folder: Path) -> Iterator[Run]:
        pool = [_Worker(self.load, tokenizer_folder) for _ in range(self.workers)]
        try:
            for worker in pool:
                worker.receive()  # says that its tokenizer is open
            yield lambda job, tasks: _results(pool, job, tasks)
        finally:
            for worker in pool:
                worker.end()


class _Worker:
    """This side of one process."""

    def __init__(self, load: LoadTokenizer, tokenizer_folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_side = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_side, load, tokenizer_folder), daemon=True)
        self._process.start()
        other_side.close()
        self._task = ""

    def send_next(self, job: Job, own: deque[Task], runs: list[deque[Task]]) -> bool:
        """Gives the worker the next of its own tasks, or else the last of another's; whether there was one."""
        longest = max(runs, key=len)
        if not longest:
            return False
        task = own.popleft() if own else longest.pop()
        self._task = task.part.name
        self.connection.send((job, task))
        return True

    def receive(self) -> Any:
        """What the worker has to say. Raises what went wrong there."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(SECONDS_TO_END)
            raise WorkerError(
                f"a worker process died (exit code {self._process.exitcode}) "
                f"{f'at {self._task}' if self._task else 'while it started'}; if it was killed for memory, give fewer "
                "--workers. Finished parts are kept: the same command goes on"
            ) from None
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """Closes the pipe, at which an idle process ends; a busy one is ended."""
        with suppress(OSError):
            self.connection.close()
        self._process.terminate()
        self._process.join()


def _results(pool: list[_Worker], job: Job, tasks: Sequence[Task]) -> Iterator[Facts]:
    """Gives each worker a run of consecutive tasks, then the ends of the longest run that is left.

    Consecutive tasks often read on where the one before stopped.
    """
    bounds = [len(tasks) * number // len(pool) for number in range(len(pool) + 1)]
    runs = [deque(tasks[begin:end]) for begin, end in pairwise(bounds)]
    busy = [worker for worker, run in zip(pool, runs, strict=True) if worker.send_next(job, run, runs)]
    own = dict(zip(pool, runs, strict=True))
    while busy:
        ready = wait([worker.connection for worker in busy])
        for worker in [worker for worker in busy if worker.connection in ready]:
            result = worker.receive()
            if not worker.send_next(job, own[worker], runs):
                busy.remove(worker)
            yield result


def _serve(connection: "Connection[Any, Any]", load: LoadTokenizer, tokenizer_folder: Path) -> None:
    """A worker's life: open the tokenizer, then do tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settle_worker()
    try:
        tokenizer = load(tokenizer_folder)
        tokenizer.threads = 1
        connection.send("ready")
        while True:
            job, task = connection.recv()
            connection.send(_attempt(job, task, tokenizer))
    except FromScratchError as error:
        connection.send(error)
    except (EOFError, ConnectionError):
        pass


def _attempt(job: Job, task: Task, tokenizer: Any) -> Facts | Exception:
    try:
        return job(task, tokenizer)
    except FromScratchError as error:
        return error
    except OSError as error:
        return WorkerError(f"{error.filename or task.part.name}: {error.strerror or error}; the same command goes on")
    except Exception as error:
        return WorkerError(f"{task.part.name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")


def _end_with_parent() -> None:
    """A killed parent must not leave workers that write beside the next preparation's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def settle_worker() -> None:
    """Keeps libraries from starting a thread per core in every process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
