"""A generated package that counts as installed."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.scaffold.names import PackageNames, find_kind, package_names
from rl_core.scaffold.write import write_package
from rl_core.testing.fixtures import site

__all__ = ["site"]


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
        monkeypatch.setenv("RL_PLUGINS", names.package)
        importlib.invalidate_caches()
        return names, folder

    return generate
