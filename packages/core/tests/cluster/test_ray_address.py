"""Which Ray a run belongs to."""

import pytest
from rl_core.cluster.ray_address import ray_address


@pytest.mark.parametrize(
    ("configured", "variable", "address"),
    [
        (None, None, ""),
        (None, " ", ""),
        (None, "local", ""),
        ("local", "10.0.0.1:6379", ""),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("cluster", "auto", "cluster"),
    ],
)
def test_local_is_a_private_ray_and_never_the_one_that_ray_would_start(configured, variable, address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert ray_address(configured) == address
