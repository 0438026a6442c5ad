"""Looking components up, and what a user reads when one is not there."""

from __future__ import annotations

import pytest
from rl_core.component import KINDS
from rl_core.discovery.lookup import ComponentNotFound, find_component, published
from rl_core.discovery.registry import load_registry
from rl_core.discovery.status import PluginStatus
from rl_core.errors import ConfigError

REWARDS = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", name, "a:B", "a:C", "summary") for name in {names}]
"""


def rewards(*names: str) -> str:
    return REWARDS.replace("{names}", repr(names))


def not_found(registry, kind: str, name: str) -> ComponentNotFound:
    with pytest.raises(ComponentNotFound) as caught:
        registry.find(kind, name)
    assert str(caught.value) == f"{caught.value.message}\n    {caught.value.fix}"
    return caught.value


def status(package: str, word: str, reason: str, **options) -> PluginStatus:
    return PluginStatus(package, package, "1.0", word, reason, **options)


def test_a_component_is_found_by_name_and_by_package_and_name(install):
    install("rl-x-rewards", rewards("length"))
    registry = load_registry()
    assert registry.find("reward", "length").package == "rl-x-rewards"
    assert registry.find("reward", "rl_x_rewards/length") == registry.find("reward", "length")


def test_a_name_that_two_packages_offer_must_be_qualified(install):
    install("rl-x-one", rewards("length", "first"))
    install("rl-x-two", rewards("length"))
    registry = load_registry()
    assert registry.find("reward", "first").package == "rl-x-one"
    assert registry.find("reward", "rl-x-two/length").package == "rl-x-two"
    error = not_found(registry, "reward", "length")
    assert error.message == "reward 'length' is offered by 2 packages: rl-x-one, rl-x-two"
    assert error.fix == "write rl-x-one/length or rl-x-two/length"
    assert isinstance(error, ConfigError)


def test_a_typo_gets_the_nearest_installed_name(install):
    install("rl-x-rewards", rewards("length", "brevity"))
    error = not_found(load_registry(), "reward", "lenght")
    assert (error.message, error.fix) == (
        "unknown reward 'lenght'",
        "did you mean 'length'? installed: brevity, length",
    )


def test_a_published_component_that_is_not_installed_gets_its_pip_command():
    with pytest.raises(ComponentNotFound) as caught:
        find_component("backend", "megatron", registered=[], plugins=[])
    assert str(caught.value) == "backend 'megatron' is not installed\n    pip install rl-backend-megatron"


def test_a_published_command_that_is_not_installed_gets_its_pip_command():
    with pytest.raises(ComponentNotFound) as caught:
        find_component("command", "plugin", registered=[], plugins=[])
    assert str(caught.value) == "command 'plugin' is not installed\n    pip install rl-plugin-kit"


def test_a_typo_of_a_published_name_gets_both():
    with pytest.raises(ComponentNotFound) as caught:
        find_component("backend", "megatorn", registered=[], plugins=[])
    assert caught.value.fix == "did you mean 'megatron'? pip install rl-backend-megatron; no backend is installed"


@pytest.mark.parametrize(
    ("plugin", "message", "fix"),
    [
        (
            status("rl-data-text", "broken", "importing rl_data_text.plugin failed: ImportError: x"),
            "data source 'jsonl' cannot be used: rl-data-text 1.0 is broken: "
            "importing rl_data_text.plugin failed: ImportError: x",
            "pip install --upgrade rl-data-text",
        ),
        (
            status("rl-data-text", "blocked", "switched off by RL_DISABLE_PLUGINS"),
            "data source 'jsonl' cannot be used: rl-data-text 1.0 is blocked: switched off by RL_DISABLE_PLUGINS",
            "unset or edit RL_DISABLE_PLUGINS",
        ),
        (
            status("rl-data-text", "blocked", "not among the plugins named in RL_PLUGINS"),
            "data source 'jsonl' cannot be used: rl-data-text 1.0 is blocked: "
            "not among the plugins named in RL_PLUGINS",
            "unset or edit RL_PLUGINS",
        ),
        (
            status("rl-data-text", "incompatible", "it needs rl-core>=2, but rl-core 0.1 is installed"),
            "data source 'jsonl' cannot be used: rl-data-text 1.0 is incompatible: "
            "it needs rl-core>=2, but rl-core 0.1 is installed",
            "pip install --upgrade rl-core rl-data-text",
        ),
        (
            status("rl-data-text", "ok", ""),
            "the installed version of rl-data-text does not offer data source 'jsonl'",
            "pip install --upgrade rl-data-text",
        ),
    ],
)
def test_a_component_of_a_plugin_that_did_not_load_says_why(plugin, message, fix):
    with pytest.raises(ComponentNotFound) as caught:
        find_component("data_source", "jsonl", registered=[], plugins=[plugin])
    assert (caught.value.message, caught.value.fix) == (message, fix)


def test_a_component_of_an_unpublished_plugin_that_broke_half_way_says_why(install):
    source = rewards("length") + "\n@hookimpl\ndef register_loggers():\n    raise OSError('disk on fire')\n"
    install("rl-x-half", source)
    error = not_found(load_registry(), "reward", "length")
    assert error.message == (
        "reward 'length' cannot be used: rl-x-half 1.0 is broken: "
        "register_loggers failed: OSError: disk on fire (plugin.py:11)"
    )


def test_a_plugin_that_could_not_be_asked_is_mentioned_as_a_suspect():
    with pytest.raises(ComponentNotFound) as caught:
        find_component("reward", "zzz", registered=[], plugins=[status("rl-x-secret", "broken", "import")])
    assert caught.value.fix == "no reward is installed; not loaded: rl-x-secret (broken), see `rl plugins`"


def test_a_qualified_name_says_what_is_wrong_with_the_package(install):
    install("rl-x-rewards", rewards("length"))
    install("rl-x-broken", "raise ValueError('no')")
    registry = load_registry()
    missing = not_found(registry, "reward", "rl-x-absent/length")
    assert (missing.message, missing.fix) == (
        "reward 'length': rl-x-absent is not installed",
        "pip install rl-x-absent",
    )
    other = not_found(registry, "reward", "rl-x-rewards/width")
    assert (other.message, other.fix) == ("rl-x-rewards offers no reward 'width'", "it offers: length")
    kind = not_found(registry, "data_source", "rl-x-rewards/width")
    assert kind.message == "rl-x-rewards offers no data source"
    broken = not_found(registry, "reward", "rl-x-broken/length")
    assert broken.message.startswith("reward 'length' cannot be used: rl-x-broken 1.0 is broken: importing")


def test_the_catalogue_names_real_kinds_and_packages():
    catalogue = published()
    assert set(catalogue) <= {*KINDS, "command", "hook", "cluster"}
    assert catalogue["algorithm"]["sft"] == "rl-algo-sft-rm"
    assert all(package.startswith("rl-") for names in catalogue.values() for package in names.values())
