"""Packages that count as installed, beside the kit itself."""

from __future__ import annotations

import pytest
from rl_plugin_kit.fixtures import generate, install
from rl_plugin_kit.fixtures import site as bare_site

__all__ = ["bare_site", "generate", "install"]


@pytest.fixture
def site(bare_site, monkeypatch):
    """With the commands of the kit."""
    monkeypatch.setenv("RL_PLUGINS", "rl-plugin-kit")
    return bare_site
