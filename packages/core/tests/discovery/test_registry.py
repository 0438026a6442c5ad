"""Calling hooks, the manifest, and listing."""

from __future__ import annotations

import pytest
from rl_core.discovery.registry import load_registry
from rl_core.errors import EnvironmentProblem

CALLS = """
from rl_core.hookspecs import hookimpl

@hookimpl
def on_step_end(step, metrics):
    if step == 13:
        raise RuntimeError("unlucky")
    return (step, dict(metrics))

@hookimpl
def validate_config(config):
    yield "first"
    if config == "bad":
        raise ValueError("cannot judge this")
"""

TAKES_NOTHING = """
from rl_core.hookspecs import hookimpl

@hookimpl
def on_step_end():
    return "called"
"""


def test_each_implementation_gets_the_arguments_it_takes(install):
    install("rl-x-calls", CALLS)
    install("rl-x-nothing", TAKES_NOTHING)
    outcomes = load_registry().call("on_step_end", stage="train", step=3, metrics={"a": 1.0})
    assert {o.package: o.result for o in outcomes} == {"rl-x-calls": (3, {"a": 1.0}), "rl-x-nothing": "called"}
    assert all(o.error is None for o in outcomes)


def test_an_exception_stays_with_its_plugin(install):
    install("rl-x-calls", CALLS)
    install("rl-x-nothing", TAKES_NOTHING)
    outcomes = {o.package: o for o in load_registry().call("on_step_end", stage="train", step=13, metrics={})}
    assert str(outcomes["rl-x-calls"].error) == "unlucky"
    assert outcomes["rl-x-nothing"].result == "called"


def test_a_generator_is_run_inside_the_isolation(install):
    install("rl-x-calls", CALLS)
    registry = load_registry()
    assert registry.call("validate_config", config="good")[0].result == ["first"]
    assert str(registry.call("validate_config", config="bad")[0].error) == "cannot judge this"


def test_calling_with_the_wrong_arguments_is_the_callers_error(install):
    install("rl-x-calls", CALLS)
    with pytest.raises(TypeError, match=r"hook 'on_step_end' does not take exactly the arguments \(step\)"):
        load_registry().call("on_step_end", step=3)


def test_an_unknown_kind_is_refused(site):
    with pytest.raises(ValueError, match="unknown kind 'algo'; choose one of algorithm, backend"):
        load_registry().components("algo")


def test_the_manifest_holds_the_plugins_that_are_ok(install):
    install("rl-x-calls", CALLS, version="2.5")
    install("rl-x-broken", "raise ValueError('no')")
    manifest = load_registry().manifest()
    assert manifest.keys() == {"rl-core", "rl-x-calls"}
    assert manifest["rl-x-calls"] == "2.5"


def test_the_same_plugins_pass_the_manifest_check_and_further_ones_do_not_matter(install):
    registry = load_registry()
    manifest = registry.manifest()
    registry.check_manifest(manifest)
    install("rl-x-calls", CALLS)
    later = load_registry()
    later.check_manifest(manifest)
    assert later.manifest().keys() - manifest.keys() == {"rl-x-calls"}


def test_every_difference_from_the_manifest_is_listed(install):
    install("rl-x-calls", CALLS, version="2.5")
    install("rl-x-broken", "raise ValueError('no')")
    registry = load_registry()
    with pytest.raises(EnvironmentProblem) as caught:
        registry.check_manifest(
            {**registry.manifest(), "rl-x-calls": "2.6", "rl-x-broken": "1.0", "rl-x-absent": "3.0"}
        )
    assert str(caught.value) == (
        "the plugins on this machine differ from those of the driver:\n"
        "    rl-x-absent: 3.0 in the driver, not installed here\n"
        "    rl-x-broken: broken here: importing rl_x_broken.plugin failed: ValueError: no (plugin.py:1)\n"
        "    rl-x-calls: 2.6 in the driver, 2.5 here\n"
        "    pip install rl-x-absent==3.0 rl-x-broken==1.0 rl-x-calls==2.6"
    )
    assert caught.value.exit_code == 3
