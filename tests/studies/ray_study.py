"""A study on a Ray cluster of two nodes on this machine: ``ray_study.py STUDY RUNS_DIR [lose]``.

With ``lose``, the second node is taken away while it trains.
"""

import importlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fromscratch.runs.records import read_records
from fromscratch.studies.verbs import open_folder, train_missing


def lose(cluster: Any, node: Any, runs: list[Path]) -> None:
    """Waits until both nodes train, and takes one away."""
    while sum(any(read_records(run / "metrics.jsonl")) for run in runs) < 2:
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    ray: Any = importlib.import_module("ray")
    cluster = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    folder = open_folder(*map(Path, sys.argv[1:3]))
    if sys.argv[3:] == ["lose"]:
        runs = [job.run.path for job in folder.jobs()]
        threading.Thread(target=lose, args=(cluster, second, runs), daemon=True).start()
    told: list[str] = []
    outcome = train_missing(folder, device="cpu", engine="ray", quiet=True, on_event=told.append)
    nodes = {one["NodeID"] for one in ray.nodes()}
    print(json.dumps({"nodes": len(nodes), "failed": outcome.has_failed, "told": told}))
    ray.shutdown()
    cluster.shutdown()
