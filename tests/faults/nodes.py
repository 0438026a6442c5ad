"""Generators on machines that come and go, simulated on one; prints what was seen as JSON.

A process of its own, because it starts a Ray cluster and connects to it.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import ray
from frail_workers import Options
from ray.cluster_utils import Cluster
from rl_core.batch import SequenceBatch
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.discovery.registry import load_registry
from rl_core.errors import EnvironmentProblem, WorkerDied
from rl_rollout.replacements import GeneratorReplacements
from rl_rollout.router import Router

CONTEXT = WorkerContext(0, 1, "", 0)
STORE = {"object_store_memory": 80 * 2**20}
PATIENCE_S = 90


class Messages(logging.Handler):
    """Keeps what the user would read."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def pool_of(logs, *, resources_s, heartbeat_s=8.0):
    deadlines = Deadlines(start_s=PATIENCE_S, call_s=PATIENCE_S, heartbeat_s=heartbeat_s, resources_s=resources_s)
    return WorkerPool(manifest=load_registry().manifest(), logs=logs, deadlines=deadlines)


def replicas(fewest, most):
    return Resources(ranks=0, replicas=fewest, max_replicas=most, gpus=0, nodes=1, threads=1, generator_threads=1)


def router_of(pool, logs, *, most):
    choice = SimpleNamespace(
        component=SimpleNamespace(factory="frail_workers:Generator"),
        config=Options(delay_s=0.0, marker=None, broken=None),
    )

    @contextmanager
    def weights():
        yield [ray.put(7)]

    pool.build(pool.generators, choice, kind="generate", context=CONTEXT)
    replacements = GeneratorReplacements(
        pool=pool, choice=choice, context=CONTEXT, model=None, tokenizer_path=logs, most=most, weights=weights
    )
    router = Router(pool.generators, pool, replacements=replacements)
    router.update_weights([ray.put(7)], 0)
    return router


def step(router, version):
    """New weights and eight requests; returns whether each was answered once, with these weights."""
    router.update_weights([ray.put(7)], version)
    first = np.arange(1, 9)
    requests = SequenceBatch.from_lists(
        [np.array([t, 0], np.int32) for t in first], sequence_columns={"seed": first.astype(np.uint64)}
    )
    answer = router.generate(requests, SamplingParams(max_new_tokens=1))
    return bool((answer.tokens[answer.offsets[1:] - 1] == first + version).all()) and len(answer) == 8


def train_until(router, count, version):
    """Steps until there are ``count`` replicas; returns the version after them."""
    deadline = time.monotonic() + PATIENCE_S
    while router.replicas != count:
        assert time.monotonic() < deadline, f"{router.replicas} replicas, not {count}"
        version += 1
        assert step(router, version)
        time.sleep(0.2)
    return version


def train_on_two_machines(cluster, pool):
    """Two ranks wait for a second machine; it leaves while they work, and they start again on the next that comes."""
    ranks = Resources(ranks=2, replicas=0, gpus=0, nodes=2, threads=1, generator_threads=1)
    preparing = threading.Thread(target=pool.prepare, args=(ranks,))
    preparing.start()
    time.sleep(7)
    joined = cluster.add_node(num_cpus=1, **STORE)  # Ray wants the main thread for this
    preparing.join()
    came = len(pool.trainers)
    rank = SimpleNamespace(component=SimpleNamespace(factory="frail_workers:Rank"), config=Options())
    pool.build(pool.trainers, rank, kind="train", context=CONTEXT)
    calls = [worker.call.remote("wait", 600) for worker in pool.trainers]
    cluster.remove_node(joined, allow_graceful=False)
    try:
        pool.get(calls, what="policy train")
        lost = ""
    except WorkerDied as death:
        lost = str(death)
    pool.close()
    cluster.add_node(num_cpus=1, **STORE)
    pool.prepare(ranks)
    again = len(pool.trainers)
    pool.close()
    return {"came": came, "lost": lost, "again": again}


def main(logs):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **STORE})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40)
    messages = Messages()
    logging.getLogger("rl").addHandler(messages)
    logging.getLogger("rl").setLevel(logging.INFO)
    seen = {}

    pool = pool_of(logs, resources_s=PATIENCE_S)
    pool.prepare(replicas(1, 3))
    router = router_of(pool, logs, most=3)
    version = train_until(router, 1, 0)
    joining = cluster.add_node(num_cpus=2, **STORE)
    version = train_until(router, 3, version)
    seen["grown"] = router.replicas

    # One on the other machine stops: it is examined and ended there.
    pids = {}
    for handle in pool.generators:
        pids[pool.get([handle.node.remote()])[0], pool.get([handle.pid.remote()])[0]] = handle
    os.kill(max(pid for _, pid in pids), signal.SIGSTOP)
    seen["after_stop"] = step(router, version + 1)
    seen["replicas_after_stop"] = router.replicas

    cluster.remove_node(joining, allow_graceful=False)
    seen["after_removal"] = step(router, version + 2)
    seen["replicas_after_removal"] = router.replicas
    pool.close()

    while ray.cluster_resources()["CPU"] != 1:
        time.sleep(0.1)
    try:
        pool_of(logs, resources_s=7).prepare(replicas(2, 2))
    except EnvironmentProblem as problem:
        seen["no_room"] = str(problem)
    seen |= train_on_two_machines(cluster, pool_of(logs, resources_s=PATIENCE_S))
    seen["messages"] = messages.texts
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
