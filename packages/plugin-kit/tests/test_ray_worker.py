"""Configs and components go to a real Ray worker; what fails there is named."""

from __future__ import annotations

import pytest
from rl_core.discovery.registry import load_registry
from rl_plugin_kit.ray_worker import check_arrival

pytestmark = pytest.mark.slow

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    names = ("Good", "Homesick", "Once", "Twisted", "Locked")
    return [Component("reward", name, "rl_x_ray.parts:" + name, "rl_x_ray.parts:Config", name) for name in names]
"""
PARTS = """
import sys
import threading
from pydantic import Field
from rl_core.config.sections import RewardConfig

class Config(RewardConfig):
    target: int = Field(1, description="Wanted.")

    def __reduce__(self):
        if self.name == "Locked":
            raise TypeError("it holds a lock")
        return super().__reduce__()

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.name == "Twisted":
            self.__dict__["target"] = 3

class Good:
    open = 0

    def __init__(self, config):
        type(self).open += 1
        assert self.open == 1, "still open"

    def close(self):
        type(self).open -= 1

class Homesick:
    def __init__(self, config):
        if "default_worker" in sys.argv[0]:
            raise RuntimeError("only works in the driver")

class Once:
    built = []

    def __init__(self, config):
        if self.built:
            raise RuntimeError("started already")
        self.built.append(self)

class Twisted:
    def __init__(self, config):
        pass

class Locked(Twisted):
    pass
"""


@pytest.fixture
def arrival(install, cluster):
    """``arrival(name)``: what is said about one reward of the package; empty where it arrives."""
    install("rl-x-ray", PLUGIN, files={"parts.py": PARTS})
    registry = load_registry()

    def arrival(*names: str) -> str:
        components = [registry.find("reward", name).component for name in names]
        given = [(f"reward {one.name!r}", one, registry.resolve(one.config)(name=one.name)) for one in components]
        try:
            check_arrival(given)
        except AssertionError as error:
            return str(error)
        return ""

    return arrival


def test_what_arrives_and_is_built_twice_is_fine_and_the_first_that_fails_is_named(arrival):
    assert arrival("Good") == ""
    assert arrival("Good", "Homesick") == (
        "reward 'Homesick': in a Ray worker building it fails: RuntimeError: only works in the driver (parts.py:33)"
    )
    assert arrival("Once") == (
        "reward 'Once': in a Ray worker building it a second time fails: RuntimeError: started already (parts.py:40)"
    )
    assert arrival("Twisted") == (
        'reward \'Twisted\': its config arrives changed in a Ray worker: {"name":"Twisted",'
        '"weight":1.0,"timeout_s":1800.0,"memory_mb":null,"on_error":"error","target":3}'
    )
    assert arrival("Locked") == (
        "reward 'Locked': its config cannot be pickled for a worker: TypeError: it holds a lock (parts.py:12)"
    )
