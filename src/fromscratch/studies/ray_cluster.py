"""Trains the runs of a study on a Ray cluster (extra ``cluster``): one run is one task on one device.

Every node must see the run files, the stores and the runs under the same paths, on a shared disk.
"""

import os
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fromscratch.studies.jobs import Job, StudyFolder
from fromscratch.studies.runner import run_claimed, train_command


class RayDevices:
    """Trains as many runs at once as the cluster has GPUs; without GPUs, as it has nodes.

    Args:
        ray: the module, connected to the cluster.
        jobs: another number of runs at once.
    """

    def __init__(self, ray: Any, options: Sequence[str], *, jobs: int | None) -> None:
        self._ray, self._options = ray, list(options)
        resources = ray.cluster_resources()
        self._gpus = int(resources.get("GPU", 0))
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self.num_slots = jobs or self._gpus or len(nodes)
        self._cpus = max(1, int(resources.get("CPU", 1)) // max(self.num_slots, 1))
        self._stop_file = f".stop-{uuid.uuid4().hex}"

    def submit(self, folder: StudyFolder, job: Job) -> "Future[int | None]":
        """As ``LocalDevices.submit``."""
        task = self._ray.remote(num_gpus=1 if self._gpus else 0, num_cpus=self._cpus, max_retries=0)(_train)
        command = [*train_command(folder.study, job), *self._options]
        reference = task.remote(folder, job, command, str(Path.cwd()), self._cpus, folder.path / self._stop_file)
        future: Future[int | None] = reference.future()
        return future

    def stop(self, folder: StudyFolder) -> None:
        """Asks all runs to save and stop: the disk that all nodes share carries the request."""
        (folder.path / self._stop_file).touch()

    def close(self, folder: StudyFolder) -> None:
        """Called when no run is left."""
        (folder.path / self._stop_file).unlink(missing_ok=True)


def _train(
    folder: StudyFolder, job: Job, command: list[str], working_folder: str, cpus: int, stop_file: Path
) -> int | None:
    """One task, on a node of the cluster."""
    os.chdir(working_folder)
    return run_claimed(folder, job, command, {"OMP_NUM_THREADS": str(cpus)}, stop_file.exists)
