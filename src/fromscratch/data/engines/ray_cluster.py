"""Runs the same jobs as Ray tasks (extra ``cluster``).

Every node must see the sources and the store under the same paths, on a shared file system. Ray
connects to the cluster that ``RAY_ADDRESS`` names, or to that of this machine, or starts one here.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fromscratch.data.engines.base import DocumentEncoder, Job, LoadTokenizer, Record, RunJob, Task
from fromscratch.data.engines.processes import WorkerError, limit_threads
from fromscratch.errors import FromScratchError, UsageError


@dataclass(frozen=True)
class RayCluster:
    """Runs each task on one CPU; ``workers`` is the maximum number of tasks at once."""

    workers: int | None
    load: LoadTokenizer

    @contextmanager
    def started(self, tokenizer_folder: Path) -> Iterator[RunJob]:
        with connected_ray() as ray:
            folder = tokenizer_folder.resolve()
            max_tasks = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            yield lambda job, tasks: _results(job, tasks, self.load, folder, max_tasks)


@contextmanager
def connected_ray() -> Iterator[Any]:
    """Yields the module ``ray``, connected to a cluster. Raises UsageError if it is not installed."""
    ray = _import_ray()
    starts_ray = not ray.is_initialized()
    if starts_ray:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        yield ray
    finally:
        if starts_ray:
            ray.shutdown()


def _results(job: Job, tasks: Sequence[Task], load: LoadTokenizer, folder: Path, max_tasks: int) -> Iterator[Record]:
    ray = _import_ray()
    remote = ray.remote(num_cpus=1, max_retries=3)(run_task)
    waiting = iter(tasks)
    running = [remote.remote(job, task, load, folder) for _, task in zip(range(max_tasks), waiting, strict=False)]
    while running:
        done, running = ray.wait(running)
        if (task := next(waiting, None)) is not None:
            running.append(remote.remote(job, task, load, folder))
        for reference in done:
            yield _result(reference)


def _result(reference: Any) -> Record:
    ray = _import_ray()
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise WorkerError(f"a Ray task failed ({str(error).splitlines()[0]}); the same command continues") from error
    if isinstance(result, FromScratchError):
        raise result
    record: Record = result
    return record


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UsageError("--engine ray: Ray is not installed; pip install 'fromscratch[cluster]'") from None


def run_task(job: Job, task: Task, load: LoadTokenizer, folder: Path) -> Record | FromScratchError:
    """Runs one task on a node; returns errors meant for the user as values."""
    try:
        return job(task, _open_tokenizer(load, folder))
    except FromScratchError as error:
        return error


@lru_cache(maxsize=2)  # a Ray worker process runs many tasks
def _open_tokenizer(load: LoadTokenizer, folder: Path) -> DocumentEncoder:
    limit_threads()
    tokenizer = load(folder)
    tokenizer.threads = 1
    return tokenizer
