"""Pytest fixtures for testing discovery and generated packages: import them into a ``conftest.py``."""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from rl_plugin_kit.packages import write_plugin
from rl_plugin_kit.scaffold.names import PackageNames, find_kind, package_names
from rl_plugin_kit.scaffold.write import write_package


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


@pytest.fixture
def generate(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[PackageNames, Path]]:
    """``generate(kind, name)`` writes a package, puts its src/ on sys.path and lets discovery find it."""

    def generate(kind: str, name: str = "my-first") -> tuple[PackageNames, Path]:
        names = package_names(find_kind(kind), name)
        folder = site / names.package
        write_package(names, folder, core="0.1.0")
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        info = folder / "src" / f"{names.module}-{project['version']}.dist-info"
        info.mkdir()
        metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
        metadata += [f"Requires-Dist: {one}" for one in project["dependencies"]]
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        points = "".join(f"{key} = {value}\n" for key, value in project["entry-points"]["rl_core.plugins"].items())
        (info / "entry_points.txt").write_text(f"[rl_core.plugins]\n{points}")
        monkeypatch.syspath_prepend(folder / "src")
        monkeypatch.setenv("RL_PLUGINS", f"{os.environ['RL_PLUGINS']},{names.package}")
        importlib.invalidate_caches()
        return names, folder

    return generate
