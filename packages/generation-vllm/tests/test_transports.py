"""Weights that arrive by each weight transport are, bit by bit, those that the object store brings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.transport import WeightGroup
from rl_ray.ports import free_port
from rl_torch.transports import collective, ipc
from rl_torch.transports.buckets import plan_buckets

PARAMS = SamplingParams(n=2, max_new_tokens=8, temperature=0.8)


class Backend:
    """The model of the spec whose seed is the version."""

    def __init__(self, small):
        self._small = small
        self.version = 0

    def named_weights(self, role):
        yield from self._small.model(self._small.spec(seed=self.version)).state_dict().items()


@pytest.fixture(params=["ipc", "collective"])
def update(request, generator, small, monkeypatch):
    """Give the generator the weights of a version by the transport."""
    module = {"ipc": ipc, "collective": collective}[request.param]
    monkeypatch.setattr(module, "plan_buckets", partial(plan_buckets, bucket_bytes=50_000))
    backend = Backend(small)
    sender, receiver = module.Sender(backend), module.Receiver(generator)
    group = WeightGroup("127.0.0.1", free_port(), 2, "cpu", 60.0)

    def by_memory(version):
        backend.version = version
        plan = sender.plan("policy")
        receiver.receive(sender.begin("policy", version, "cpu"), partial(sender.next, version), plan, version)
        sender.finish(version)

    def by_broadcast(version):
        backend.version = version
        plan = sender.plan("policy")
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(sender.send, "policy", group)
            receiver.receive(group, 1, plan, version)
            sent.result()

    yield by_memory if module is ipc else by_broadcast
    sender.close()
    receiver.close()


def test_three_updates_sample_as_the_same_weights_from_the_object_store(update, generator, small):
    requests, seen = small.requests(small.prompts([5, 70])), set()
    for version in (1, 2, 3):
        update(version)
        found = generator.generate(requests, PARAMS)
        assert set(found.token_columns["weights_version"].tolist()) == {version}
        generator.update_weights(small.buckets(small.spec(seed=version)), version)
        expected = generator.generate(requests, PARAMS)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.token_columns["sampled_logprobs"].tolist() == expected.token_columns["sampled_logprobs"].tolist()
        seen.add(tuple(found.tokens.tolist()))
    assert len(seen) == 3
    generator.update_weights(small.buckets(small.spec()), 0)
