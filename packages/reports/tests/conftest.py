"""This package alone counts as installed."""

from __future__ import annotations

import pytest
from rl_plugin_kit.fixtures import site as bare_site

__all__ = ["bare_site"]


@pytest.fixture
def site(bare_site, monkeypatch):
    monkeypatch.setenv("RL_PLUGINS", "rl-reports")
    return bare_site
