"""The package keeps the rules for plugins."""

from __future__ import annotations

from pathlib import Path

from rl_plugin_kit.conformance import PluginConformance


class TestPlugin(PluginConformance):
    package = "rl-env-tools"
    settings = {  # noqa: RUF012
        "tools": {"tools": ["os.path:basename"]},
        "python": {"class": str(Path(__file__).with_name("my_tools.py")) + ":Echo"},
    }
