"""The package keeps the rules that every plugin keeps."""

from __future__ import annotations

from rl_plugin_kit.conformance import PluginConformance


class TestPlugin(PluginConformance):
    package = "rl-algo-bestofn"
