import importlib.util

import pytest
from rl_core.cluster import session
from rl_core.cluster.session import _check_client
from rl_core.errors import EnvironmentProblem


def test_a_client_address_without_the_client_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem) as caught:
        _check_client("ray://head:10001")
    assert str(caught.value) == (
        "the address 'ray://head:10001' (run.address or RAY_ADDRESS) needs Ray's client, which is not installed\n"
        "    pip install 'ray[client]'"
    )
    _check_client("head:6379")


def test_a_client_server_that_fails_to_start_is_asked_again(monkeypatch, caplog):
    answers = [ConnectionError("no server"), ConnectionError("no server"), None]

    def init(**options):
        answer = answers.pop(0)
        if answer:
            raise answer

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(session, "CLIENT_PAUSE_S", 0.0)
    session._initialise({}, "ray://head:10001")
    assert answers == []
    assert caplog.messages == ["joining the Ray cluster at ray://head:10001 failed, trying again: no server"] * 2


@pytest.mark.parametrize(("address", "attempts"), [("ray://head:10001", 3), ("head:6379", 1)])
def test_a_cluster_that_cannot_be_joined_says_how_to_check(address, attempts, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        raise ConnectionError("no server")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(session, "CLIENT_PAUSE_S", 0.0)
    with pytest.raises(EnvironmentProblem) as caught:
        session._initialise({}, address)
    assert len(calls) == attempts
    assert str(caught.value) == (
        f"could not join the Ray cluster at {address!r} (run.address or RAY_ADDRESS): no server\n"
        f"    check with: ray status --address {address}"
    )
