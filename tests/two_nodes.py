"""A Ray cluster of two simulated machines with GPUs that are not there; lives until its standard input ends.

Prints its addresses, and how workers with GPUs are placed on it as JSON.
"""

import json
import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # the client's server is forked; with gRPC's handlers it sometimes dies
os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "300"  # a busy machine starts it late

import ray
from ray.cluster_utils import Cluster
from ray.util import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rl_core.cluster.placement import bundles_in_order, machines_of, reserve
from rl_core.cluster.resources import Resources
from rl_ray.ports import free_port

GPUS = {"num_cpus": 4, "num_gpus": 3}


def placed(resources):
    """Machine of each rank and of each generator, and the GPUs that the first of both are given."""
    group = reserve(resources, wait_s=60, stopping=lambda: False)
    machines = machines_of(group, len(resources.bundles))
    order = bundles_in_order(machines, resources.ranks, per_machine=resources.gpus)
    ranks = [order[resources.rank_bundle(i)] for i in range(resources.ranks)]
    replicas = [order[resources.replica_bundle(i)] for i in range(resources.replicas)]
    calls = []
    for bundle, share in ((ranks[0], resources.rank_gpus), (replicas[0], resources.replica_gpus(outside=False))):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        seen = ray.remote(num_cpus=1, num_gpus=share, scheduling_strategy=where)(ray.get_gpu_ids)
        calls.append(seen.remote())
    gpus = ray.get(calls)
    remove_placement_group(group)
    return {"ranks": [machines[b] for b in ranks], "replicas": [machines[b] for b in replicas], "gpus": gpus}


def placements(address):
    ray.init(address=address, log_to_driver=False, logging_level=40)
    common = {"replicas": 2, "nodes": 2, "threads": 1, "generator_threads": 1}
    found = {
        "separate": placed(Resources(ranks=4, gpus=2, separate=True, **common)),
        "colocated": placed(Resources(ranks=2, gpus=1, **common)),
    }
    ray.shutdown()
    return found


def main() -> None:
    port = free_port()
    store = {"object_store_memory": 128 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**GPUS, "include_dashboard": False, "ray_client_server_port": port, **store},
    )
    cluster.add_node(**GPUS, **store)
    cluster.wait_for_nodes()
    sys.stdout.write(f"{cluster.address} ray://127.0.0.1:{port}\n{json.dumps(placements(cluster.address))}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
