import importlib.util

import pytest
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
