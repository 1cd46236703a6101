"""The same jobs as Ray tasks, on whatever cluster ``ray`` is connected to (extra ``cluster``).

Every node must see the sources and the store under the same paths: a shared file system. The address
comes from ``RAY_ADDRESS`` or the cluster of this machine; without either Ray starts one here.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fromscratch.data.engines.base import DocumentEncoder, Facts, Job, LoadTokenizer, Run, Task
from fromscratch.data.engines.processes import WorkerError, settle_worker
from fromscratch.errors import FromScratchError, UsageError


@dataclass(frozen=True)
class RayCluster:
    """One CPU per task; ``workers`` is the most tasks under way at once."""

    workers: int | None
    load: LoadTokenizer

    @contextmanager
    def started(self, tokenizer_folder: Path) -> Iterator[Run]:
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        try:
            folder = tokenizer_folder.resolve()
            most = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            yield lambda job, tasks: _results(job, tasks, self.load, folder, most)
        finally:
            if ours:
                ray.shutdown()


def _results(job: Job, tasks: Sequence[Task], load: LoadTokenizer, folder: Path, most: int) -> Iterator[Facts]:
    ray = _ray()
    remote = ray.remote(num_cpus=1, max_retries=3)(run_task)
    waiting = iter(tasks)
    running = [remote.remote(job, task, load, folder) for _, task in zip(range(most), waiting, strict=False)]
    while running:
        done, running = ray.wait(running)
        if (task := next(waiting, None)) is not None:
            running.append(remote.remote(job, task, load, folder))
        for reference in done:
            yield _facts(reference)


def _facts(reference: Any) -> Facts:
    ray = _ray()
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise WorkerError(f"a Ray task failed ({str(error).splitlines()[0]}); the same command goes on") from error
    if isinstance(result, FromScratchError):
        raise result
    facts: Facts = result
    return facts


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UsageError("--engine ray: Ray is not installed; pip install 'fromscratch[cluster]'") from None


def run_task(job: Job, task: Task, load: LoadTokenizer, folder: Path) -> Facts | FromScratchError:
    """What runs on a node; errors meant for the user come back as values."""
    try:
        return job(task, _opened_tokenizer(load, folder))
    except FromScratchError as error:
        return error


@lru_cache(maxsize=2)  # a Ray worker process does many tasks
def _opened_tokenizer(load: LoadTokenizer, folder: Path) -> DocumentEncoder:
    settle_worker()
    tokenizer = load(folder)
    tokenizer.threads = 1
    return tokenizer
