"""The generator where it lives: in Ray actors behind the router, in a run, and when a process dies."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.discovery.registry import load_registry
from rl_core.errors import WorkerDied
from rl_generation_vllm.config import VllmConfig
from rl_generation_vllm.plugin import register_generators
from rl_rollout.router import Router
from support import EXAMPLES, metrics_of

pytestmark = pytest.mark.slow


def test_the_quickstart_learns_and_the_engine_keeps_up_with_the_policy(rl, tmp_path):
    vllm = ["generator={name: vllm, max_new_tokens: 4}", "loggers=[]"]
    fewer = ["stages.sft.run.steps=900", "stages.grpo.run.steps=30"]
    rl("run", EXAMPLES / "quickstart.yaml", *vllm, *fewer, f"run.directory={tmp_path}/run", timeout=1500)
    rows = [row for row in metrics_of(tmp_path / "run") if row["stage"] == "grpo"]
    accuracy = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    assert 0.45 < accuracy[0] < 0.75
    assert accuracy[-1] >= 0.97
    # An engine with older weights, or log-probs of something else, would show here.
    gaps = [row["mismatch/max_abs_logprob_gap"] for row in rows if row["step"]]
    assert len(gaps) == 30
    assert max(gaps) < 1e-4


@pytest.fixture
def replicas(cluster, small, tmp_path):
    """Two engines in actors of their own, with weights, and the pool they belong to."""
    import ray

    (component,) = register_generators()
    choice = SimpleNamespace(component=component, config=VllmConfig(name="vllm", max_num_seqs=4, replicas=2))
    pool = WorkerPool(manifest=load_registry().manifest(), logs=tmp_path, deadlines=Deadlines(start_s=300, call_s=300))
    pool.prepare(Resources(ranks=0, replicas=2, gpus=0, nodes=1, threads=1, generator_threads=1))
    context = WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=1)
    pool.build(pool.generators, choice, kind="generate", context=context)
    pool.get([g.call.remote("load", small.spec(max_length=640), None) for g in pool.generators], starting=True)
    router = Router(pool.generators, pool)
    router.update_weights([ray.put(bucket) for bucket in small.buckets(small.spec(max_length=640))], 1)
    yield router, pool
    pool.close()


def kill_while_it_works(pool, index):
    """Kill a replica's process a moment from now; returns the thread that does."""
    pid = pool.get([pool.generators[index].pid.remote()])[0]

    def kill():
        time.sleep(0.7)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_an_engine_that_dies_in_a_request_is_replaced_by_the_others_and_the_last_one_ends_the_run(replicas, small):
    router, pool = replicas
    requests = small.requests(small.prompts([5, 40, 9, 30]))
    expected = router.generate(requests, SamplingParams(n=2, max_new_tokens=16))
    long = SamplingParams(n=8, max_new_tokens=500)
    killer = kill_while_it_works(pool, 0)
    batch = router.generate(requests, long)
    killer.join()
    assert router.replicas == 1
    assert batch.sequence_columns["request"].tolist() == np.repeat(np.arange(4), 8).tolist()
    assert batch.sequence_columns["sample"].tolist() == list(range(8)) * 4
    assert set(batch.token_columns["weights_version"].tolist()) == {1}
    small.assert_same(router.generate(requests, SamplingParams(n=2, max_new_tokens=16)), expected)

    killer = kill_while_it_works(pool, 0)  # the one that is left
    with pytest.raises(WorkerDied) as caught:
        router.generate(requests, long)
    killer.join()
    assert re.match(r"generator generate-1 \(pid \d+ on \S+\) ended during generate: ", str(caught.value))
    assert caught.value.role == "generate"
