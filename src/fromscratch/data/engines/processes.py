"""Worker processes on this machine; each runs one task at a time.

Every process opens the tokenizer once and encodes on one thread. The processes are spawned, not
forked, because libraries with threads do not survive a fork; a script that starts them needs the
usual ``if __name__ == "__main__":``.
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

from fromscratch.data.engines.base import Job, LoadTokenizer, Record, RunJob, Task
from fromscratch.errors import FromScratchError

EXIT_TIMEOUT_SECONDS = 5.0


class WorkerError(FromScratchError):
    """A worker process died, or failed for a reason other than its input; exit code 1."""


@dataclass(frozen=True)
class WorkerProcesses:
    """``workers`` processes; ``load`` opens the saved tokenizer in each and must be importable by name."""

    workers: int
    load: LoadTokenizer

    @contextmanager
    def started(self, tokenizer_folder: Path) -> Iterator[RunJob]:
        pool = [_Worker(self.load, tokenizer_folder) for _ in range(self.workers)]
        try:
            for worker in pool:
                worker.receive()  # its tokenizer is open
            yield lambda job, tasks: _results(pool, job, tasks)
        finally:
            for worker in pool:
                worker.stop()


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, load: LoadTokenizer, tokenizer_folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_side = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_side, load, tokenizer_folder), daemon=True)
        self._process.start()
        other_side.close()
        self._task = ""

    def send_next(self, job: Job, own: deque[Task], queues: list[deque[Task]]) -> bool:
        """Sends the first task of its own queue, or else the last of the longest; returns whether there was one."""
        longest = max(queues, key=len)
        if not longest:
            return False
        task = own.popleft() if own else longest.pop()
        self._task = task.part.name
        self.connection.send((job, task))
        return True

    def receive(self) -> Any:
        """Returns the next result of the worker. Raises the error of the worker, or WorkerError if it died."""
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(EXIT_TIMEOUT_SECONDS)
            raise WorkerError(
                f"a worker process died (exit code {self._process.exitcode}) "
                f"{f'at {self._task}' if self._task else 'while it started'}; if it was killed for lack of memory, "
                "give fewer --workers. Finished parts are kept; the same command continues"
            ) from None
        if isinstance(result, Exception):
            raise result
        return result

    def stop(self) -> None:
        """Closes the pipe and terminates the process."""
        with suppress(OSError):
            self.connection.close()
        self._process.terminate()
        self._process.join()


def _results(pool: list[_Worker], job: Job, tasks: Sequence[Task]) -> Iterator[Record]:
    """Gives each worker a queue of consecutive tasks; a worker whose queue is empty takes from the longest.

    A task often continues in the file where the task before it stopped.
    """
    bounds = [len(tasks) * number // len(pool) for number in range(len(pool) + 1)]
    queues = [deque(tasks[begin:end]) for begin, end in pairwise(bounds)]
    own = dict(zip(pool, queues, strict=True))
    busy = [worker for worker in pool if worker.send_next(job, own[worker], queues)]
    while busy:
        ready = wait([worker.connection for worker in busy])
        for worker in [worker for worker in busy if worker.connection in ready]:
            result = worker.receive()
            if not worker.send_next(job, own[worker], queues):
                busy.remove(worker)
            yield result


def _serve(connection: "Connection[Any, Any]", load: LoadTokenizer, tokenizer_folder: Path) -> None:
    """Opens the tokenizer, then runs tasks until the pipe closes: the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    limit_threads()
    try:
        tokenizer = load(tokenizer_folder)
        tokenizer.threads = 1
        connection.send("ready")
        while True:
            job, task = connection.recv()
            connection.send(_run_task(job, task, tokenizer))
    except FromScratchError as error:
        connection.send(error)
    except (EOFError, ConnectionError):
        pass


def _run_task(job: Job, task: Task, tokenizer: Any) -> Record | Exception:
    try:
        return job(task, tokenizer)
    except FromScratchError as error:
        return error
    except OSError as error:
        return WorkerError(f"{error.filename or task.part.name}: {error.strerror or error}; the same command continues")
    except Exception as error:
        return WorkerError(f"{task.part.name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")


def _exit_with_parent() -> None:
    """Exits when the parent was killed; otherwise two preparations could write to one store."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def limit_threads() -> None:
    """Keeps libraries from starting one thread per core in every process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
