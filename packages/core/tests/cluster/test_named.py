"""Clusters that have a name."""

from __future__ import annotations

import pytest
from rl_core.cluster.named import find_cluster, joinable
from rl_core.errors import EnvironmentProblem
from rl_plugin_kit.fixtures import install, site

__all__ = ["install", "site"]

PLUGIN = """
from pathlib import Path
from types import SimpleNamespace

from rl_core.errors import EnvironmentProblem
from rl_core.hookspecs import hookimpl

@hookimpl
def find_cluster(name):
    if name == "down":
        raise EnvironmentProblem("the lab is closed")
    if name == "odd":
        raise KeyError("x")
    return SimpleNamespace(address="10.0.0.5:6379", token=Path("t"), pid=1) if name == "lab" else None
"""


def test_a_plugin_says_where_a_named_cluster_is(install):
    install("rl-x-lab", PLUGIN)
    assert find_cluster("lab").address == "10.0.0.5:6379"
    assert find_cluster("other") is None
    with pytest.raises(EnvironmentProblem, match="the lab is closed"):
        find_cluster("down")
    with pytest.raises(EnvironmentProblem, match="package rl-x-lab: its hook find_cluster failed"):
        find_cluster("odd")


def test_the_name_of_a_package_that_is_not_installed_says_which(site):
    with pytest.raises(EnvironmentProblem, match="\\n    pip install rl-local-cluster"), joinable("cluster"):
        pass


@pytest.mark.parametrize("address", ["auto", "local", "127.0.0.1:6379", "ray://head:10001"])
def test_an_address_is_asked_of_nobody(address):
    with joinable(address, lambda name: pytest.fail(name)) as (place, cluster):
        assert (place, cluster) == (address, None)
