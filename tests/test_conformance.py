"""Every package of this repository passes the kit that third-party authors use."""

from __future__ import annotations

import pytest
from rl_core.testing.conformance import PluginConformance
from support import ROOT

PLUGINS = sorted(
    f"rl-{path.parent.name}"
    for path in (ROOT / "packages").glob("*/pyproject.toml")
    if "rl_core.plugins" in path.read_text()
    # It has an environment of its own, where its own tests run the kit.
    and path.parent.name != "generation-vllm"
)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_package_passes_the_conformance_kit(name):
    checks = [getattr(PluginConformance, n) for n in dir(PluginConformance) if n.startswith("test_")]
    assert len(checks) >= 5
    suite = type("Suite", (PluginConformance,), {"package": name})()
    for check in checks:
        check(suite)
