"""A Ray cluster of two simulated machines: prints its addresses and lives until its standard input ends."""

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # the client's server is forked; with gRPC's handlers it sometimes dies
os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "300"  # a busy machine starts it late

from ray.cluster_utils import Cluster
from rl_core.cluster.ports import free_port


def main() -> None:
    port = free_port()
    store = {"object_store_memory": 128 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "ray_client_server_port": port, **store},
    )
    cluster.add_node(num_cpus=2, **store)
    cluster.wait_for_nodes()
    sys.stdout.write(f"{cluster.address} ray://127.0.0.1:{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
