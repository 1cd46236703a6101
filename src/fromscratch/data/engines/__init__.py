"""Who does the work of a preparation: this process, several of them, or a Ray cluster."""

from fromscratch.data.engines.base import Engine, InProcess, Job, Task
from fromscratch.data.engines.processes import WorkerProcesses
from fromscratch.data.engines.ray_cluster import RayCluster

__all__ = ["Engine", "InProcess", "Job", "RayCluster", "Task", "WorkerProcesses"]
