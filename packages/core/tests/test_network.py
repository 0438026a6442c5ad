"""Interfaces of this machine, and the one that process groups are kept on."""

import contextlib
import os
import socket

import pytest
from rl_core import network
from rl_core.errors import EnvironmentProblem
from rl_core.network import (
    LOOPBACK,
    bound_socket,
    chosen,
    held_socket,
    interface_towards,
    interface_with,
    use_interface,
)

TWO = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.5", "10.0.0.6"], "ib0": ["fd00::5"]}


@pytest.fixture
def two_networks(monkeypatch):
    monkeypatch.setattr(network, "interfaces", lambda: TWO)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-3")


@pytest.fixture
def environment(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "_set_here", {})


def test_this_machine_has_a_loopback_interface_and_reaches_itself_through_it():
    name = interface_with("127.0.0.1")
    assert "127.0.0.1" in network.interfaces()[name]
    assert interface_with("127.0.0.7") == name
    assert interface_towards("localhost") == name
    assert chosen(LOOPBACK, otherwise="") == (name, "127.0.0.1")
    assert interface_with("203.0.113.9") is None


@pytest.mark.parametrize(
    ("interface", "otherwise", "expected"),
    [
        (LOOPBACK, "10.0.0.5", ("lo", "127.0.0.1")),
        (None, "10.0.0.6", ("eth0", "10.0.0.6")),
        (None, "127.0.0.1", ("lo", "127.0.0.1")),
        ("eth0", "10.0.0.6", ("eth0", "10.0.0.6")),
        ("ib0", "10.0.0.5", ("ib0", "fd00::5")),
    ],
)
def test_the_interface_is_the_one_named_or_that_of_the_address_in_the_cluster(
    two_networks, interface, otherwise, expected
):
    assert chosen(interface, otherwise=otherwise) == expected


def test_an_interface_that_a_machine_lacks_is_refused_with_those_that_it_has(two_networks):
    with pytest.raises(EnvironmentProblem) as caught:
        chosen("eth1", otherwise="10.0.0.5")
    assert str(caught.value) == (
        "the machine node-3 has no network interface 'eth1' (run.network_interface)\n"
        "    it has: eth0 (10.0.0.5), ib0 (fd00::5), lo (127.0.0.1)"
    )
    with pytest.raises(EnvironmentProblem) as caught:
        chosen(None, otherwise="192.0.2.77")
    assert str(caught.value) == (
        "no network interface of the machine node-3 has the address 192.0.2.77, by which Ray knows it\n"
        "    set run.network_interface to one of: eth0 (10.0.0.5), ib0 (fd00::5), lo (127.0.0.1)"
    )


def variables():
    return os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")


def test_gloo_and_nccl_are_told_one_interface_by_its_whole_name(environment):
    use_interface("eth1")
    assert variables() == ("eth1", "=eth1")  # NCCL takes a name without "=" for a prefix: eth1 and eth10
    use_interface("lo")
    assert variables() == ("lo", "=lo")


def test_what_the_user_set_stays_where_nothing_else_was_asked_for(environment, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0,ib1")
    use_interface("eth0", instead=False)
    assert variables() == ("eth0", "ib0,ib1")
    use_interface("eth1", instead=False)  # the first was ours, and follows
    assert variables() == ("eth1", "ib0,ib1")
    use_interface("lo")
    assert variables() == ("lo", "=lo")


def test_a_held_port_is_given_to_nobody_until_it_is_closed():
    with held_socket("127.0.0.1") as held:
        address, port = held.getsockname()
        assert address == "127.0.0.1"
        for other in ("127.0.0.1", ""):
            with socket.socket() as listener, pytest.raises(OSError, match="in use"):
                listener.bind((other, port))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def test_whoever_serves_there_may_bind_a_held_port_in_its_place():
    with held_socket("127.0.0.1") as held, bound_socket("127.0.0.1", held.getsockname()[1]) as server:
        server.listen()
        with socket.create_connection(held.getsockname(), timeout=5) as client:
            accepted, address = server.accept()
            accepted.close()
            assert address == client.getsockname()


def test_a_socket_is_bound_to_the_one_address_only():
    with bound_socket("127.0.0.2", 0) as server:
        server.listen()
        server.settimeout(0.5)
        port = server.getsockname()[1]
        with contextlib.suppress(ConnectionRefusedError):  # or somebody else listens there on this port
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(TimeoutError):
            server.accept()
