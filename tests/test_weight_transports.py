"""Weights from two training ranks to generators, in processes of a real run, over each transport."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import sockets
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.cluster.pool import Deadlines, WorkerPool, group_topologies
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import LossSpec, WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.discovery.registry import load_registry
from rl_core.model import Model
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator
from rl_rollout.replacements import GeneratorReplacements
from rl_rollout.router import Router
from rl_rollout.transports.collective import Collective
from rl_rollout.transports.ipc import Ipc

pytestmark = pytest.mark.slow

CONTEXT = WorkerContext(0, 1, "", 0)
VOCAB = 40
SHAPE = {"architecture": "qwen2", "hidden_size": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 64}
SPEC = ModelSpec(
    init=SHAPE | {"tie_embeddings": False, "extra": {"initializer_range": 0.3}}, vocab_size=VOCAB, max_length=32
)
FSDP2, HF = Fsdp2Config(name="fsdp2"), HfGeneratorConfig(name="hf")
PATIENCE_S = 200.0
ROUNDING = 1e-4
"""Between log-probs of the same float32 weights in batches of different sizes, whose products add in different orders:
about 200 additions (sums of 32, 64 and 40 terms, one after another), each off by at most 2⁻²⁴ of logits of up to 8."""
REQUESTS = SequenceBatch.from_lists([[1, 2, 3], [4, 5]], sequence_columns={"seed": np.arange(2)})
SAMPLING = SamplingParams(n=2, max_new_tokens=8)


def chosen(factory, config):
    return SimpleNamespace(component=SimpleNamespace(factory=factory), config=config)


class Run:
    """A policy on two ranks, two generators, and a generator here that is given the same weights by hand."""

    def __init__(self, folder):
        self.pool = WorkerPool(
            manifest=load_registry().manifest(),
            logs=folder,
            deadlines=Deadlines(start_s=PATIENCE_S, call_s=PATIENCE_S, heartbeat_s=60.0, resources_s=60.0),
        )
        pool = self.pool
        pool.prepare(Resources(ranks=2, replicas=2, gpus=0, nodes=1, threads=1, generator_threads=1))
        self.pids = pool.get([worker.pid.remote() for worker in [*pool.trainers, *pool.generators]], starting=True)
        self.rays = set(sockets.listening(self.pids))
        backend = chosen("rl_backend_fsdp2.backend:Fsdp2Backend", FSDP2)
        topology = group_topologies(pool.build(pool.trainers, backend, kind="train", context=CONTEXT))
        role = Role("policy", trainable=True)
        optimizer = OptimizerSpec(learning_rate=0.1)
        infos = pool.get([t.call.remote("load", role, SPEC, optimizer) for t in pool.trainers], starting=True)
        self.policy = Model(role, info=infos[0], pool=pool, workers=pool.trainers, topology=topology)
        generator = chosen("rl_generation_hf.generator:HfGenerator", HF)
        pool.build(pool.generators, generator, kind="generate", context=CONTEXT)
        pool.get([g.call.remote("load", SPEC, None) for g in pool.generators], starting=True)
        replacements = GeneratorReplacements(
            pool=pool,
            choice=generator,
            context=CONTEXT,
            model=SPEC,
            tokenizer_path=None,
            most=2,
            weights=self.weights,
        )
        self.router = Router(pool.generators, pool, replacements=replacements)
        self.version = 0
        self.here = HfGenerator(HF)
        self.here.setup(CONTEXT)
        self.here.load(SPEC, None)

    @contextmanager
    def weights(self):
        yield self.policy.weight_references()

    def train(self):
        """The weights change by as much as one step of a large learning rate makes."""
        self.version += 1
        rng = np.random.default_rng(self.version)
        rows = [rng.integers(0, VOCAB, 8) for _ in range(4)]
        batch = SequenceBatch.from_lists(rows, token_columns={"loss_mask": [np.ones(8, np.float32)] * 4})
        self.policy.train(batch, LossSpec("rl_algo_sft_rm.losses:negative_log_likelihood"))

    def assert_all_sample_from_the_newest_weights(self):
        """Every generator's tokens and log-probs are those of the weights from the object store."""
        for generator in self.pool.generators:
            (found,) = self.pool.get([generator.call.remote("generate", REQUESTS, SAMPLING)])
            self.here.update_weights(ray.get(self.policy.weight_references()), self.version)
            expected = self.here.generate(REQUESTS, SAMPLING)
            assert found.tokens.tolist() == expected.tokens.tolist()
            ours, theirs = found.token_columns, expected.token_columns
            assert ours["weights_version"].tolist() == theirs["weights_version"].tolist()
            np.testing.assert_allclose(ours["sampled_logprobs"], theirs["sampled_logprobs"], rtol=0, atol=ROUNDING)

    def await_both_generators(self):
        deadline = time.monotonic() + PATIENCE_S
        while self.router.replicas < 2:
            assert time.monotonic() < deadline
            time.sleep(0.5)
            self.router.admit()


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory):
    made = Run(tmp_path_factory.mktemp("logs"))
    yield made
    made.pool.close()


def collective_of(run):
    ends = {"sender": FSDP2.weight_transports["collective"], "receiver": HF.weight_transports["collective"]}
    return Collective(run.pool, run.policy, **ends, device="cpu")


def test_the_groups_of_trainers_and_for_weights_listen_on_loopback_only(run):
    run.train()
    run.router.renew_weights(collective_of(run), run.version)
    run.assert_all_sample_from_the_newest_weights()
    opened = set(sockets.listening(run.pids)) - run.rays
    assert {socket.pid for socket in opened} == set(run.pids)  # gloo's, in every process
    assert {socket.address for socket in opened} == {"127.0.0.1"}


def test_a_broadcast_outlives_generators_that_die_and_includes_those_that_join(run, caplog):
    caplog.set_level("INFO", logger="rl")
    transport = collective_of(run)
    for _ in range(3):
        run.train()
        run.router.renew_weights(transport, run.version)
        run.assert_all_sample_from_the_newest_weights()
    assert run.router.replicas == 2
    group = transport._group[0]

    os.kill(ray.get(run.pool.generators[0].pid.remote()), signal.SIGKILL)
    run.train()
    run.router.renew_weights(transport, run.version)
    assert run.router.replicas == 1
    run.assert_all_sample_from_the_newest_weights()
    assert any(m.startswith("an exchange of weights with 2 generators broke off: ") for m in caplog.messages)
    assert not any("object store" in m for m in caplog.messages)
    assert (group.size, transport._group[0].size) == (3, 2)

    run.await_both_generators()
    run.assert_all_sample_from_the_newest_weights()
    run.train()
    run.router.renew_weights(transport, run.version)
    assert transport._group[0].size == 3
    run.assert_all_sample_from_the_newest_weights()


@pytest.mark.parametrize("name", ["collective", "ipc"])
def test_what_does_not_work_on_this_machine_gives_way_to_the_object_store(run, monkeypatch, caplog, name):
    beside = dict(zip(map(id, run.pool.generators), run.pool.trainers, strict=True))
    monkeypatch.setattr(run.pool, "trainer_on_gpu_of", lambda generator: beside[id(generator)])
    ends = {"sender": FSDP2.weight_transports[name], "receiver": HF.weight_transports[name]}
    transport = {"collective": Collective, "ipc": Ipc}[name](run.pool, run.policy, **ends, device="mps")
    for _ in range(2):
        run.train()
        run.router.renew_weights(transport, run.version)
        run.assert_all_sample_from_the_newest_weights()
    assert run.router.replicas == 2
    assert len([m for m in caplog.messages if m.startswith("from now on weights take the object store")]) == 1


def test_memory_shared_with_one_rank_feeds_the_generator_beside_it_and_the_object_store_the_other(run, monkeypatch):
    first, second = run.pool.generators
    beside = {id(second): run.pool.trainers[1]}
    monkeypatch.setattr(run.pool, "trainer_on_gpu_of", lambda generator: beside.get(id(generator)))
    ends = {"sender": FSDP2.weight_transports["ipc"], "receiver": HF.weight_transports["ipc"]}
    transport = Ipc(run.pool, run.policy, **ends, device="cpu")
    for _ in range(3):
        run.train()
        run.router.renew_weights(transport, run.version)
        run.assert_all_sample_from_the_newest_weights()

    os.kill(ray.get(second.pid.remote()), signal.SIGKILL)
    run.train()
    run.router.renew_weights(transport, run.version)
    assert run.pool.generators == [first]
    run.assert_all_sample_from_the_newest_weights()
