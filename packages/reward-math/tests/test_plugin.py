"""The package keeps the rules for plugins."""

from __future__ import annotations

from rl_core.testing.conformance import PluginConformance


class TestPlugin(PluginConformance):
    package = "rl-reward-math"
