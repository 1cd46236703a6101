"""A preparation on a Ray cluster of two nodes on this machine: ``ray_trial.py CORPUS OUT``."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from fromscratch.data.engines import RayCluster
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.sources import Files
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.loading import load

if __name__ == "__main__":
    ray: Any = importlib.import_module("ray")
    cluster = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    corpus, out = map(Path, sys.argv[1:])
    prepare_store([Files(corpus)], BytesTokenizer(), out, rule=SplitRule(0.3), engine=RayCluster(None, load))
    print(json.dumps({"nodes": len([node for node in ray.nodes() if node["Alive"]])}))
    ray.shutdown()
    cluster.shutdown()
