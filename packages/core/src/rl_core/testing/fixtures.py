"""Pytest fixtures for testing discovery: import them into a ``conftest.py``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rl_core.testing.packages import write_plugin


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder on sys.path that stands for site-packages; plugins outside it are blocked, except rl-core."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("RL_PLUGINS", "")
    monkeypatch.delenv("RL_DISABLE_PLUGINS", raising=False)
    yield path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(path)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``install(package, source_of_plugin_py, **options of write_plugin)``, allowed through RL_PLUGINS."""

    def install(package: str, plugin: str, *, files: dict[str, str] | None = None, **options) -> Path:
        root = write_plugin(site, package, files={"plugin.py": plugin, **(files or {})}, **options)
        monkeypatch.setenv("RL_PLUGINS", f"{os.environ['RL_PLUGINS']},{package}")
        importlib.invalidate_caches()
        return root

    return install
