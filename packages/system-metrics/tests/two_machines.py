"""Measures a Ray cluster of two simulated machines, then that of one that is left; prints both as JSON."""

import json
import time

import ray
from ray.cluster_utils import Cluster
from rl_system_metrics.collector import Machines

STORE = {"object_store_memory": 100 * 2**20, "num_cpus": 1}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={**STORE, "include_dashboard": False})
    second = cluster.add_node(**STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40)
    machines = Machines()
    both = machines.measure()
    cluster.remove_node(second)
    while sum(node["Alive"] for node in ray.nodes()) > 1:
        time.sleep(0.1)
    left = machines.measure()
    print(json.dumps([sorted(both), sorted(left), both]))
    ray.shutdown()
    cluster.shutdown()
