"""Trains the runs of a study on a Ray cluster (extra ``cluster``): one run is one task on one device.

Every node must see the run files, the stores and the runs under the same paths, on a shared disk.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.errors import EXIT_CRASH, UsageError
from fromscratch.studies.jobs import Job, StudyFolder
from fromscratch.studies.runner import log_of, run_claimed


@dataclass(frozen=True)
class Share:
    """How a cluster is divided among runs."""

    num_slots: int
    """Runs at once."""
    gpus: int
    """GPUs of a run: 1, or 0 where the cluster has none."""
    cpus: int
    """CPU cores of a run: as many as every node that can train has for each of its runs."""


def share_of(nodes: Sequence[Mapping[str, float]], jobs: int | None) -> Share:
    """Divides the resources of nodes: one run per GPU; without GPUs, one run per node, or ``jobs`` in all.

    Raises:
        UsageError: no node has a GPU or a CPU for runs.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        gpus = sum(int(node["GPU"]) for node in with_gpus)
        cpus = min(int(node.get("CPU", 0)) // int(node["GPU"]) for node in with_gpus)
        return Share(jobs or gpus, 1, cpus)
    with_cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not with_cpus:
        raise UsageError("--engine ray: no node of the Ray cluster has a GPU or a CPU for runs; add one that has")
    num_slots = jobs or len(with_cpus)
    runs_per_node = -(-num_slots // len(with_cpus))
    return Share(num_slots, 0, max(1, min(with_cpus) // runs_per_node))


class RayDevices:
    """Trains as many runs at once as the cluster has GPUs; without GPUs, as it has nodes.

    Args:
        ray: the module, connected to the cluster.
        jobs: another number of runs at once.
    """

    def __init__(self, ray: Any, options: Sequence[str], *, jobs: int | None) -> None:
        self._ray, self._options = ray, list(options)
        self._share = share_of([node["Resources"] for node in ray.nodes() if node["Alive"]], jobs)
        self.num_slots = self._share.num_slots
        self._stop_file = f".stop-{uuid.uuid4().hex}"

    def submit(self, folder: StudyFolder, job: Job) -> "Future[int | None]":
        """As ``LocalDevices.submit``. A task that Ray lost is a run that failed; its log says why."""
        share = self._share
        task = self._ray.remote(num_gpus=share.gpus, num_cpus=share.cpus, max_retries=0)(_train)
        stop_file = folder.path / self._stop_file
        reference = task.remote(folder, job, self._options, str(Path.cwd()), share.cpus, stop_file)
        code: Future[int | None] = Future()

        def finish(ended: "Future[int | None]") -> None:
            error = ended.exception()
            if error is not None:
                with _log(folder, job).open("a") as file:
                    file.write(f"the Ray task of this run failed: {error}\n")
            code.set_result(EXIT_CRASH if error is not None else ended.result())

        reference.future().add_done_callback(finish)
        return code

    def stop(self, folder: StudyFolder) -> None:
        """Asks all runs to save and stop: the disk that all nodes share carries the request."""
        (folder.path / self._stop_file).touch()

    def close(self, folder: StudyFolder) -> None:
        """Called when no run is left."""
        (folder.path / self._stop_file).unlink(missing_ok=True)


def _log(folder: StudyFolder, job: Job) -> Path:
    path = log_of(folder, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _train(
    folder: StudyFolder, job: Job, options: list[str], working_folder: str, cpus: int, stop_file: Path
) -> int | None:
    """One task, on a node of the cluster."""
    os.chdir(working_folder)
    return run_claimed(folder, job, options, {"OMP_NUM_THREADS": str(max(1, cpus))}, stop_file.exists)
