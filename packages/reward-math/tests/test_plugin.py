"""The package keeps the rules for plugins."""

from __future__ import annotations

from rl_plugin_kit.conformance import PluginConformance


class TestPlugin(PluginConformance):
    package = "rl-reward-math"
