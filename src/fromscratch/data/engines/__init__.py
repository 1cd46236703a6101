"""Where a preparation runs: in this process, in worker processes, or on a Ray cluster."""

from fromscratch.data.engines.base import Engine, InProcess, Job, Task
from fromscratch.data.engines.processes import WorkerProcesses
from fromscratch.data.engines.ray_cluster import RayCluster

__all__ = ["Engine", "InProcess", "Job", "RayCluster", "Task", "WorkerProcesses"]
