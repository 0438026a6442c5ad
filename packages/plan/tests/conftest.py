"""The fixtures of the core for configs, with this package installed."""

from __future__ import annotations

import os
import sys

import pytest
from rl_plugin_kit.fixtures import install
from rl_plugin_kit.fixtures import site as bare_site

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../core/tests"))
sys.path.insert(0, os.path.dirname(__file__))
from config_kit import base, config_of, folder, hooks, problems_of, registry, run_check
from rl_plan import plugin

__all__ = ["bare_site", "base", "config_of", "folder", "hooks", "install", "problems_of", "registry", "run_check"]


@pytest.fixture
def more_plugins():
    return (plugin,)


@pytest.fixture
def site(bare_site, monkeypatch):
    """With the commands of this package."""
    monkeypatch.setenv("RL_PLUGINS", "rl-plan")
    return bare_site
