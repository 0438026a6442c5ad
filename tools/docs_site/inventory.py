"""What the packages of this repository offer, read from their sources: nothing has to be installed but rl-core."""

from __future__ import annotations

import importlib
import inspect
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_core.component import KINDS, Component

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Offer:
    """A component and the distribution that it comes from."""

    component: Component
    package: str

    def config(self) -> Any:
        """Its pydantic model."""
        module, _, name = self.component.config.partition(":")
        return getattr(importlib.import_module(module), name)


def packages() -> dict[str, Path]:
    """Distribution name → folder, in the order of the folders."""
    found = {}
    for file in sorted((ROOT / "packages").glob("*/pyproject.toml")):
        found[tomllib.loads(file.read_text())["project"]["name"]] = file.parent
    return found


def offers() -> list[Offer]:
    """Every component of every package, in the order of :data:`rl_core.component.KINDS`, then by name."""
    # All of them, before any is imported: configs use light modules of packages that offer no components.
    sys.path += [str(folder / "src") for folder in packages().values() if str(folder / "src") not in sys.path]
    found = []
    for package, folder in packages().items():
        for reference in _plugin_modules(folder):
            found += [Offer(component, package) for component in _registered(importlib.import_module(reference))]
    return sorted(found, key=lambda offer: (KINDS.index(offer.component.kind), offer.component.name))


def hooks() -> dict[str, Any]:
    """Name → function of every hook, in the order of the specification."""
    from rl_core import hookspecs

    functions = inspect.getmembers(hookspecs, inspect.isfunction)
    found = {name: function for name, function in functions if hasattr(function, f"{hookspecs.PROJECT}_spec")}
    return dict(sorted(found.items(), key=lambda item: item[1].__code__.co_firstlineno))


def _plugin_modules(folder: Path) -> list[str]:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return list(project.get("entry-points", {}).get("rl_core.plugins", {}).values())


def _registered(module: Any) -> list[Component]:
    return [
        component
        for name, hook in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("register_") and name != "register_commands"
        for component in hook()
    ]
