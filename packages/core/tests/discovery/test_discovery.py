"""Discovery with real packages in a temporary site-packages folder."""

from __future__ import annotations

import logging
import re
import sys

import pytest
from rl_core.discovery.registry import load_registry

GOOD = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    yield Component(kind="reward", name="length", factory="{module}.reward:Length", config="{module}.config:Length",
                    summary="Length of the completion")
"""


def good(module: str) -> str:
    return GOOD.replace("{module}", module)


def status_of(package: str):
    [found] = [plugin for plugin in load_registry().plugins if plugin.package == package]
    return found


def test_a_plugin_and_what_it_offers_are_found_without_importing_its_components(install):
    install("rl-x-good", good("rl_x_good"), version="1.2")
    found = status_of("rl-x-good")
    assert (found.name, found.version, found.status, found.reason) == ("rl-x-good", "1.2", "ok", "")
    assert found.module == "rl_x_good.plugin"
    assert [(c.kind, c.name) for c in found.components] == [("reward", "length")]
    assert "rl_x_good.reward" not in sys.modules


def test_the_core_offers_the_logger_of_metrics_and_is_listed_first(site):
    registry = load_registry()
    assert registry.plugins[0].package == "rl-core"
    assert [(r.package, r.component.name) for r in registry.components("logger")] == [("rl-core", "jsonl")]


def test_a_plugin_that_does_not_import_is_broken_with_file_and_line(install):
    install("rl-x-import", "import os\n\nraise RuntimeError('no luck')\n")
    found = status_of("rl-x-import")
    assert found.status == "broken"
    assert found.reason == "importing rl_x_import.plugin failed: RuntimeError: no luck (plugin.py:3)"


def test_a_plugin_that_exits_at_import_does_not_end_the_program(install):
    install("rl-x-exit", "import sys\nsys.exit('bye')\n")
    assert status_of("rl-x-exit").reason == "importing rl_x_exit.plugin failed: SystemExit: bye (plugin.py:2)"


def test_an_entry_point_to_a_missing_module_is_broken(install):
    install("rl-x-nowhere", "", entry_point="rl_x_nowhere.plugins")
    assert status_of("rl-x-nowhere").reason == (
        "importing rl_x_nowhere.plugins failed: ModuleNotFoundError: No module named 'rl_x_nowhere.plugins'"
    )


def test_a_hook_that_raises_breaks_its_plugin_and_no_other(install):
    source = good("rl_x_raise") + "\n@hookimpl\ndef register_loggers():\n    raise KeyError('home')\n"
    install("rl-x-raise", source)
    install("rl-x-good", good("rl_x_good"))
    registry = load_registry()
    by_package = {plugin.package: plugin for plugin in registry.plugins}
    assert by_package["rl-x-raise"].status == "broken"
    assert by_package["rl-x-raise"].reason == "register_loggers failed: KeyError: 'home' (plugin.py:12)"
    assert by_package["rl-x-good"].status == "ok"
    assert registry.find("reward", "length").package == "rl-x-good"
    assert registry.call("register_rewards")[0].package == "rl-x-good"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "@hookimpl\ndef register_rewards():\n    return ['length']\n",
            "register_rewards: expected rl_core.component.Component, got str",
        ),
        (
            "@hookimpl\ndef register_rewards():\n    return [Component('logger', 'x', 'a:B', 'a:C', 's')]\n",
            "register_rewards: 'x' is of kind 'logger', expected 'reward'",
        ),
        (
            "@hookimpl\ndef register_rewards():\n    return [Component('reward', 'a/b', 'a:B', 'a:C', 's')]\n",
            "register_rewards: 'a/b' is not a usable name (letters, digits, '_', '.', '-')",
        ),
        (
            "@hookimpl\ndef register_rewards():\n    return [Component('reward', 'x', 'a:B', 'a:C', 's')] * 2\n",
            "it offers the reward 'x' 2 times",
        ),
        (
            "@hookimpl\ndef register_rewards():\n    return [Component('reward', 'x', 'a.B', 'a:C', 's')]\n",
            "register_rewards failed: ValueError: reward 'x': factory must be 'package.module:Name', got 'a.B' "
            "(component.py:LINE)",
        ),
        (
            "@hookimpl\ndef register_reward():\n    return []\n",
            "unknown hook 'register_reward'; did you mean 'register_rewards'?",
        ),
        (
            "def register_rewards():\n    return []\n",
            "rl_x_bad.plugin implements no hook; mark functions with rl_core.hookspecs.hookimpl",
        ),
        (
            "@hookimpl(wrapper=True)\ndef on_run_end(status):\n    yield\n",
            "on_run_end is a hook wrapper; plugins are called one by one, so wrappers are not supported",
        ),
    ],
)
def test_a_defect_is_named(install, body, reason):
    install(
        "rl-x-bad",
        "from rl_core.component import Component\nfrom rl_core.hookspecs import hookimpl\n" + body,
    )
    found = status_of("rl-x-bad")
    assert found.status == "broken"
    assert re.sub(r"component.py:\d+", "component.py:LINE", found.reason) == reason
    assert load_registry().components("reward") == []


def test_a_hook_argument_that_does_not_exist_breaks_the_plugin(install):
    install(
        "rl-x-argument",
        "from rl_core.hookspecs import hookimpl\n@hookimpl\ndef on_run_end(state):\n    pass\n",
    )
    found = status_of("rl-x-argument")
    assert found.status == "broken"
    assert found.reason.startswith("hook signature: ")
    assert "state" in found.reason


def test_one_module_behind_two_distributions_is_named(install):
    install("rl-x-good", good("rl_x_good"))
    install("rl-x-second", "", entry_point="rl_x_good.plugin")
    assert status_of("rl-x-second").reason == (
        "rl_x_good.plugin is already registered by rl-x-good; an entry point names it twice"
    )


def test_an_incompatible_plugin_is_not_imported(install):
    install("rl-x-future", "raise RuntimeError('imported')", requires=["numpy", "rl-core>=99,<100"])
    found = status_of("rl-x-future")
    assert found.status == "incompatible"
    assert re.fullmatch(r"it needs rl-core<100,>=99, but rl-core \S+ is installed", found.reason)
    assert "rl_x_future.plugin" not in sys.modules


def test_a_requirement_behind_an_extra_or_another_python_does_not_count(install):
    requires = ["rl-core>=0.1", "rl-core>=99; extra == 'next'", "rl-core>=99; python_version < '3'"]
    install("rl-x-extra", good("rl_x_extra"), requires=requires)
    assert status_of("rl-x-extra").status == "ok"


def test_an_unreadable_requirement_is_reported(install):
    install("rl-x-garbled", good("rl_x_garbled"), requires=["rl-core >>> 1"])
    found = status_of("rl-x-garbled")
    assert (found.status, found.reason) == (
        "incompatible",
        "its metadata holds a requirement that cannot be read: 'rl-core >>> 1'",
    )


def test_a_disabled_plugin_is_not_imported(install, monkeypatch):
    install("rl-x-off", "raise RuntimeError('imported')")
    monkeypatch.setenv("RL_DISABLE_PLUGINS", "Rl_X_Off")
    found = status_of("rl-x-off")
    assert (found.status, found.reason) == ("blocked", "switched off by RL_DISABLE_PLUGINS")
    assert "rl_x_off.plugin" not in sys.modules


def test_an_allowlist_blocks_the_others_but_never_the_core(install, monkeypatch):
    install("rl-x-good", good("rl_x_good"))
    install("rl-x-other", good("rl_x_other"))
    monkeypatch.setenv("RL_PLUGINS", "rl-x-good")
    statuses = {plugin.package: (plugin.status, plugin.reason) for plugin in load_registry().plugins}
    assert statuses["rl-core"] == ("ok", "")
    assert statuses["rl-x-good"] == ("ok", "")
    assert statuses["rl-x-other"] == ("blocked", "not among the plugins named in RL_PLUGINS")


def test_a_name_in_the_environment_that_matches_nothing_is_logged(site, monkeypatch, caplog):
    monkeypatch.setenv("RL_DISABLE_PLUGINS", "rl-x-typo")
    with caplog.at_level(logging.WARNING):
        load_registry()
    assert caplog.messages == ["RL_DISABLE_PLUGINS names rl-x-typo, which is not an installed plugin"]


def test_the_trace_shows_each_phase_with_its_time(install, monkeypatch, capsys):
    install("rl-x-good", good("rl_x_good"))
    monkeypatch.setenv("RL_TRACE_PLUGINS", "1")
    load_registry()
    phases = re.findall(r"^\[plugins \+ *[\d.]+ ms\] (.*) \([\d.]+ ms\)$", capsys.readouterr().err, re.MULTILINE)
    assert phases[0] == "read metadata"
    assert phases[-3:] == [
        "rl-x-good: check version",
        "rl-x-good: import rl_x_good.plugin",
        "rl-x-good: register hooks",
    ]


def test_the_trace_is_silent_by_default(site, capsys):
    load_registry()
    assert capsys.readouterr().err == ""
