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


def test_components_and_plugins_are_listed(install, capsys):
    install("rl-x-lake", PLUGIN, version="1.2")
    install("rl-x-broken", "raise ValueError('no [luck]')")
    assert main(["plugins"]) == 0
    printed = capsys.readouterr()
    rows = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert "data source lake rl-x-lake Rows from the [blue] lake (not installed: unheard_of)" in rows
    assert "rl-x-lake 1.2 ok" in rows
    assert "rl-x-broken 1.0 broken importing rl_x_broken.plugin failed: ValueError: no [luck] (plugin.py:1)" in rows
    assert printed.err == ""


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
                "missing_imports": ["unheard_of"],
            }
        ],
    }
