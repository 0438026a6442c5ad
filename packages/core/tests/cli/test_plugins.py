"""``rl plugins``."""

from __future__ import annotations

import json

from rl_core.cli.main import main

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_data_sources():
    return [Component("data_source", "lake", "a:B", "a:C", "Rows from the [blue] lake", imports=("unheard_of",))]
"""
HALF = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "length", "a:B", "a:C", "Length"), "brevity"]
"""


def test_components_and_plugins_are_listed_with_their_status_and_its_reason(install, monkeypatch, capsys):
    install("rl-x-lake", PLUGIN, version="1.2")
    install("rl-x-broken", "raise ValueError('no [luck]')")
    install("rl-x-half", HALF)
    install("rl-x-off", PLUGIN)
    monkeypatch.setenv("RL_DISABLE_PLUGINS", "rl-x-off")
    assert main(["plugins"]) == 0
    printed = capsys.readouterr()
    rows = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert "data source lake rl-x-lake 1.2 ok Rows from the [blue] lake (not installed: unheard_of)" in rows
    assert "rl-x-lake 1.2 ok" in rows
    assert "rl-x-broken 1.0 broken importing rl_x_broken.plugin failed: ValueError: no [luck] (plugin.py:1)" in rows
    assert "reward length rl-x-half 1.0 broken Length" in rows
    assert "rl-x-half 1.0 broken register_rewards: expected rl_core.component.Component, got str" in rows
    assert "rl-x-off 1.0 blocked switched off by RL_DISABLE_PLUGINS" in rows
    assert printed.err == ""


def test_a_plugin_that_names_a_secret_when_it_breaks_is_listed_without_it(install, monkeypatch, capsys):
    monkeypatch.setenv("ACME_TOKEN", "hunter22")
    install("rl-x-broken", "raise ValueError('hunter22 is refused at https://tok3n@host')")
    monkeypatch.setenv("RL_PLUGINS", "rl-x-broken,rl-plan,rl-reports")
    for command in (["plugins"], ["plugins", "--json"], ["doctor", "--json"], ["runs", "nowhere"]):
        main(command)
        printed = capsys.readouterr()
        assert "hunter22" not in printed.out + printed.err
        assert "tok3n" not in printed.out + printed.err
        assert "*** is refused at https://***@host" in printed.out + printed.err


def test_the_same_as_json(install, capsys):
    install("rl-x-lake", PLUGIN, version="1.2")
    assert main(["plugins", "--json"]) == 0
    plugins = {plugin["package"]: plugin for plugin in json.loads(capsys.readouterr().out)["plugins"]}
    assert plugins["rl-x-lake"] == {
        "name": "rl-x-lake",
        "package": "rl-x-lake",
        "version": "1.2",
        "status": "ok",
        "reason": "",
        "module": "rl_x_lake.plugin",
        "components": [
            {
                "kind": "data_source",
                "name": "lake",
                "factory": "a:B",
                "config": "a:C",
                "summary": "Rows from the [blue] lake",
                "needs": [],
                "uses": [],
                "imports": ["unheard_of"],
                "memory_estimate": "",
                "missing_imports": ["unheard_of"],
            }
        ],
    }
