"""Stores of process groups: who can reach them."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sockets
import torch.distributed as dist
from rl_core.cluster.group_rendezvous import RendezvousPoints
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.contracts.transport import WeightGroup
from rl_torch.rendezvous import open_store, store_of

PATIENCE = timedelta(seconds=20)


@pytest.fixture
def opened():
    """The sockets that this process has begun to listen on since the test's start."""
    before = set(sockets.listening([os.getpid()]))
    return lambda: sorted(set(sockets.listening([os.getpid()])) - before)


@pytest.fixture
def places():
    made = RendezvousPoints()
    yield made
    made.close()


def both(place):
    """The stores of two ranks."""
    with ThreadPoolExecutor(2) as threads:
        stores = [threads.submit(open_store, place, rank=rank, size=2, timeout=PATIENCE) for rank in (0, 1)]
        return [store.result(timeout=30) for store in stores]


def assert_shared(first, second):
    first.set("key", "value")
    assert second.get("key") == b"value"
    assert second.add("count", 2) == 2
    assert first.add("count", 3) == 5


def test_one_rank_alone_listens_nowhere(opened):
    store = open_store(Rendezvous("203.0.113.9", 1), rank=0, size=1, timeout=PATIENCE)
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert opened() == []


def test_ranks_of_one_machine_share_a_file_in_their_folder_and_listen_nowhere(opened, places):
    place = places.open("train", address="127.0.0.1", one_machine=True)
    first, second = both(place)
    assert_shared(first, second)
    assert os.listdir(place.folder) == ["store"]
    assert opened() == []


def test_ranks_of_several_machines_share_a_server_on_the_one_address_and_held_port(opened, places):
    place = places.open("train", address="127.0.0.2", one_machine=False)
    assert opened() == []
    first, second = both(place)
    assert_shared(first, second)
    assert opened() == [(os.getpid(), "127.0.0.2", place.port)]
    del first, second
    places.close()
    assert opened() == []


def test_ranks_set_up_by_hand_meet_at_an_address_and_listen_on_no_other(opened):
    with_port = RendezvousPoints()
    port = with_port.open("any", address="127.0.0.2", one_machine=False).port
    with_port.close()  # a port that was free a moment ago, as users find one
    first, second = both(Rendezvous("127.0.0.2", port))
    assert_shared(first, second)
    assert opened() == [(os.getpid(), "127.0.0.2", port)]


def test_a_plugin_that_makes_its_own_store_at_the_address_and_port_of_its_context_can(places):
    for one_machine in (True, False):
        place = places.open("train", address="127.0.0.1", one_machine=one_machine)
        server = dist.TCPStore(place.address, place.port, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        client = dist.TCPStore(place.address, place.port, is_master=False, timeout=PATIENCE, wait_for_workers=False)
        assert_shared(server, client)


def test_a_rank_that_does_not_come_is_waited_for_until_the_timeout_of_the_group(places):
    for one_machine in (True, False):
        place = places.open("weights", address="127.0.0.1", one_machine=one_machine)
        store = store_of(WeightGroup(place.address, place.port, 2, "cpu", 0.5, place), 0)
        with pytest.raises(RuntimeError):
            store.get("what the other would set")
    with pytest.raises(RuntimeError):
        open_store(Rendezvous("127.0.0.1", place.port), rank=1, size=2, timeout=timedelta(seconds=1)).get("key")
