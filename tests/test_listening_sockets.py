"""Who can reach the process groups of ranks: the sockets that real backends listen on, read from /proc."""

from __future__ import annotations

import os
from datetime import timedelta

import listening_jobs
import pytest
import sockets
import torch.distributed as dist
from ranks import Ranks
from rl_backend_fsdp2.config import Fsdp2Config
from rl_backend_megatron.config import MegatronConfig
from rl_core.cluster.group_rendezvous import RendezvousPoints

pytestmark = pytest.mark.slow

BACKENDS = {
    "fsdp2": ("rl_backend_fsdp2.backend:Fsdp2Backend", Fsdp2Config(name="fsdp2")),
    "megatron": ("rl_backend_megatron.backend:MegatronBackend", MegatronConfig(name="megatron")),
}
as_root = pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")


@pytest.fixture(scope="module")
def pair():
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture
def places():
    made = RendezvousPoints()
    yield made
    made.close()


def work(name, **options):
    backend, config = BACKENDS[name]
    return {"backend": backend, "config": config, **options}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", BACKENDS)
def test_ranks_on_one_machine_listen_on_loopback_only(pair, places, name, world):
    place = places.open("train", address="127.0.0.1", one_machine=True)
    found = pair(listening_jobs.opened_by, world, **work(name, place=place))
    addresses = [{address for address, _ in rank["opened"]} for rank in found]
    assert addresses == [{"127.0.0.1"}] * world  # gloo's: a rank that opens none would make this test worthless
    assert place.port not in {port for rank in found for _, port in rank["opened"]}
    assert [rank["sum"] for rank in found] == [world] * world


@pytest.mark.parametrize("name", BACKENDS)
def test_ranks_on_several_machines_listen_on_the_address_that_was_chosen_only(pair, name):
    found = pair(listening_jobs.opened_by, **work(name))  # by hand at 127.0.0.1, with a port instead of a folder
    assert all(address == "127.0.0.1" for rank in found for address, _ in rank["opened"])
    assert [rank["sum"] for rank in found] == [2, 2]


@as_root
def test_another_user_of_the_machine_is_told_nothing_and_breaks_nothing(pair, places):
    place = places.open("train", address="127.0.0.1", one_machine=True)
    found = pair(listening_jobs.opened_by, **work("fsdp2", place=place, ask=True))
    assert all(rank["told"] == ["nothing"] * len(rank["opened"]) and rank["opened"] for rank in found)
    assert [rank["sum"] for rank in found] == [2, 2]


@as_root
def test_the_same_questions_are_answered_by_a_store_that_listens():
    before = set(sockets.listening([os.getpid()]))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)
    store.set("key", "value")
    (server,) = set(sockets.listening([os.getpid()])) - before
    assert server.address == "::"
    (told,) = listening_jobs.ask_as_another_user([server._replace(address="127.0.0.1")])
    assert int.from_bytes(bytes.fromhex(told), "little") == store.num_keys()
