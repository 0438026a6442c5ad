"""Both ends of each weight transport, joined by real process groups and shared memory, in threads of one process."""

from __future__ import annotations

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from rl_core.contracts.transport import WeightGroup, WeightTransferFailed
from rl_core.errors import RLError
from rl_ray.ports import free_port
from rl_torch.transports import collective, ipc
from rl_torch.transports.buckets import fill, plan_buckets
from rl_torch.weights import from_buckets

torch.set_num_threads(1)


class Backend:
    """Three parameters, odd in size and of two dtypes, which differ from version to version."""

    def __init__(self):
        self.version = 0
        self.gathered = 0

    def tensors(self):
        random = torch.Generator().manual_seed(self.version)
        return {
            "a.weight": torch.randn(3, 5, generator=random),
            "b.weight": torch.randn(7, generator=random).to(torch.bfloat16),
            "b.bias": torch.randn(1, 3, generator=random),
            "scale": torch.randn((), generator=random),
        }

    def named_weights(self, role):
        assert role == "policy"
        for name, tensor in self.tensors().items():
            yield name, tensor
            self.gathered += 1


class Generator:
    """Keeps what it is given."""

    def __init__(self):
        self.weights, self.version = {}, None

    def update_weights(self, buckets, version):
        self.weights, self.version = dict(from_buckets(buckets)), version


@pytest.fixture(autouse=True)
def _several_buckets(monkeypatch):
    for module in (collective, ipc):
        monkeypatch.setattr(module, "plan_buckets", partial(plan_buckets, bucket_bytes=64))


@pytest.fixture
def threads():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def assert_same_bits(generator, backend, version):
    expected = backend.tensors()
    assert generator.version == version
    assert list(generator.weights) == list(expected)
    for name, tensor in expected.items():
        assert generator.weights[name].dtype == tensor.dtype
        assert torch.equal(generator.weights[name], tensor), name


def group_of(size, *, timeout_s=60.0):
    return WeightGroup("127.0.0.1", free_port(), size, "cpu", timeout_s)


def exchange(threads, backend, sender, receivers, group, version):
    """New weights to everybody; what each end raised."""
    backend.version = version
    plan = sender.plan("policy")
    calls = [threads.submit(sender.send, "policy", group)]
    calls += [threads.submit(r.receive, group, rank, plan, version) for rank, r in enumerate(receivers, start=1)]
    return [call.exception() for call in calls]


def test_buckets_are_bounded_and_a_large_tensor_has_one_to_itself():
    plan = plan_buckets(Backend().named_weights("policy"), bucket_bytes=30)
    assert [(b.names, b.nbytes) for b in plan] == [(("a.weight",), 60), (("b.weight", "b.bias", "scale"), 30)]
    assert (plan[1].shapes, plan[1].dtypes) == (((7,), (1, 3), ()), ("bfloat16", "float32", "float32"))


def test_parameters_that_are_not_those_of_the_plan_are_named():
    (layout,) = plan_buckets({"w": torch.zeros(2)}.items())
    with pytest.raises(RLError) as caught:
        fill(torch.empty(8, dtype=torch.uint8), layout, iter({"w": torch.zeros(3)}.items()))
    assert str(caught.value) == (
        "the backend streams other parameters than before: "
        "('w', (3,), 'float32') in the place of ('w', (2,), 'float32')"
    )


def test_a_broadcast_brings_the_same_bits_update_after_update_and_to_those_that_join_later(threads):
    backend, generators = Backend(), [Generator(), Generator(), Generator()]
    sender, receivers = collective.Sender(backend), [collective.Receiver(g) for g in generators]
    group = group_of(3)
    for version in (1, 2, 3):
        assert exchange(threads, backend, sender, receivers[:2], group, version) == [None] * 3
        for generator in generators[:2]:
            assert_same_bits(generator, backend, version)
    joined = sender._group
    assert exchange(threads, backend, sender, receivers, group_of(4), 4) == [None] * 4
    assert sender._group is not joined
    for generator in generators:
        assert_same_bits(generator, backend, 4)


def test_ranks_that_do_not_send_only_gather():
    backend = Backend()
    collective.Sender(backend).send("policy", None)
    assert backend.gathered == 4


def test_a_member_that_dies_ends_the_exchange_for_all_without_a_change_and_the_others_form_a_new_group(threads):
    backend, generators = Backend(), [Generator(), Generator()]
    sender, receivers = collective.Sender(backend), [collective.Receiver(g) for g in generators]
    group = group_of(3)
    assert exchange(threads, backend, sender, receivers, group, 1) == [None] * 3
    expected = backend.tensors()

    receivers[1].close()  # its connections end, as with a process
    gc.collect()
    backend.gathered = 0
    failures = exchange(threads, backend, sender, receivers[:1], group, 2)
    assert [type(failure) for failure in failures] == [WeightTransferFailed] * 2
    assert all(str(failure).startswith("an exchange of weights broke off: ") for failure in failures)
    assert backend.gathered == 2 * 4  # for the plan, and to the last parameter although nobody received them
    assert generators[0].version == 1
    assert all(torch.equal(generators[0].weights[name], tensor) for name, tensor in expected.items())

    assert exchange(threads, backend, sender, receivers[:1], group_of(2), 3) == [None] * 2
    assert_same_bits(generators[0], backend, 3)


def test_a_member_that_does_not_come_or_stands_still_is_waited_for_no_longer_than_the_deadline(threads):
    backend, generator = Backend(), Generator()
    sender, receiver = collective.Sender(backend), collective.Receiver(generator)
    (alone,) = exchange(threads, backend, sender, [], group_of(2, timeout_s=0.5), 1)
    assert isinstance(alone, WeightTransferFailed)
    assert str(alone).startswith("the group for weights did not form: ")

    group = group_of(2)
    assert exchange(threads, backend, sender, [receiver], group, 1) == [None] * 2
    plan = sender.plan("policy")
    # A short deadline once they have met, which may take longer on a busy machine.
    receiver._group.spec = group = replace(group, timeout_s=1.0)
    receiver._group._group._set_default_timeout(timedelta(seconds=3))
    late = threads.submit(receiver.receive, group, 1, plan, 2).exception()  # nobody sends
    assert isinstance(late, WeightTransferFailed)
    assert str(late) == "an exchange of weights stood still for 1 s"
    assert receiver._group is None
    assert generator.version == 1


def shared_update(sender, receiver, *, update, version, plan):
    handle = sender.begin("policy", update, "cpu")
    receiver.receive(handle, partial(sender.next, update), plan, version)
    sender.finish(update)


def test_shared_memory_brings_the_same_bits_update_after_update():
    backend, generator = Backend(), Generator()
    sender, receiver = ipc.Sender(backend), ipc.Receiver(generator)
    plan = sender.plan("policy")
    assert len(plan) == 2
    for version in (1, 2, 3):
        backend.version = version
        shared_update(sender, receiver, update=version, version=version, plan=plan)
        assert_same_bits(generator, backend, version)
    assert sender._buffer is None


def test_a_rank_whose_generator_is_gone_gathers_the_rest_and_passes_over_late_calls():
    backend = Backend()
    sender = ipc.Sender(backend)
    sender.plan("policy")
    backend.gathered = 0
    sender.begin("policy", 1, "cpu")
    sender.next(1)
    sender.finish(1)
    assert backend.gathered == 4
    sender.begin("policy", 2, "cpu")
    sender.next(1)
    sender.finish(1)
    assert backend.gathered == 4
    sender.finish(2)
    assert backend.gathered == 8


def read_in_another_process(handle, pipe):
    shared = pickle.loads(handle)
    pipe.send(shared.tolist())
    shared += 1
    pipe.send("written")
    os._exit(0)


def test_the_handle_is_of_the_same_memory_in_another_process():
    buffer = torch.arange(6, dtype=torch.uint8)
    handle = ipc.handle_of(buffer)
    here, there = get_context("fork").Pipe()
    process = get_context("fork").Process(target=read_in_another_process, args=(handle, there))
    process.start()
    assert here.recv() == [0, 1, 2, 3, 4, 5]
    assert here.recv() == "written"
    process.join(60)
    assert buffer.tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.multiprocessing.get_sharing_strategy() == "file_descriptor"
