"""The fixtures of the core for configs, with this package installed."""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../core/tests"))
from config_kit import base, config_of, folder, hooks, problems_of, registry, run_check
from rl_huggingface import plugin

__all__ = ["base", "config_of", "folder", "hooks", "problems_of", "registry", "run_check"]


@pytest.fixture
def more_plugins():
    return (plugin,)
