"""``run.network_interface``: one that this machine does not have is refused before anything starts."""

import pytest
from rl_core.preflight import crosscheck

HERE = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5", "fd00::5"]}


@pytest.fixture(autouse=True)
def _two_interfaces(monkeypatch):
    monkeypatch.setattr(crosscheck, "interfaces", lambda: HERE)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_an_interface_of_this_machine_is_taken(problems_of, base):
    assert problems_of(base, "run.network_interface=eth0") == []
    assert problems_of(base) == []


def test_another_is_refused_with_those_there_are(problems_of, base):
    assert problems_of(base, "run.network_interface=eth1", "run.address=auto") == [
        "command line: run.network_interface: this machine has no network interface 'eth1'\n"
        "    set one of: eth0 (10.0.0.5), lo (127.0.0.1), or remove it"
    ]


def test_the_machine_of_a_ray_client_need_not_have_it(problems_of, base, monkeypatch):
    assert problems_of(base, "run.network_interface=eth1", "run.address=ray://head:10001") == []
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert problems_of(base, "run.network_interface=eth1") == []
