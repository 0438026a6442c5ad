"""The kernels that are installed, and which of them a config asks for. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from rl_core.errors import ConfigError

from rl_torch.kernels.contract import Kernel, KernelChoice, Use

GROUP = "rl_torch.kernels"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Installed:
    """A kernel's entry point.

    Attributes:
        package: the distribution that has it.
        kernel: None where ``defect`` says what is wrong with it.
    """

    name: str
    package: str
    kernel: Kernel | None
    defect: str = ""


def installed() -> dict[str, Installed]:
    """By name, in alphabetical order."""
    found: dict[str, Installed] = {}
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        package = point.dist.name if point.dist is not None else point.module
        if point.name not in found:
            found[point.name] = _load(point, package)
    return found


def _load(point: importlib.metadata.EntryPoint, package: str) -> Installed:
    try:
        return Installed(point.name, package, cast(Kernel, point.load()))
    except Exception as error:  # noqa: BLE001 - the plugin boundary
        return Installed(point.name, package, None, f"{point.value} cannot be imported: {error}")


def chosen(choice: KernelChoice) -> list[Kernel]:
    """The kernels of a config.

    Raises:
        ConfigError: it names one that is not installed, or cannot be imported.
    """
    if choice == "none":
        return []
    known = installed()
    if choice != "auto":
        for problem in unknown(choice):
            raise ConfigError(problem)
        return [one.kernel for one in (known[name] for name in choice) if one.kernel is not None]
    for one in known.values():
        if one.kernel is None:
            logger.warning("kernel %s (package %s) is left out: %s", one.name, one.package, one.defect)
    return [one.kernel for one in known.values() if one.kernel is not None]


def unknown(choice: KernelChoice) -> Iterator[str]:
    """What is wrong with the names in a config."""
    if isinstance(choice, str):
        return
    known = installed()
    for name in choice:
        if name not in known:
            there = f"installed: {', '.join(known)}" if known else "none is installed"
            yield f"kernels: no kernel {name!r} is installed ({there})\n    pip install rl-kernels-{name}"
        elif known[name].defect:
            yield f"kernels: {name!r} of package {known[name].package}: {known[name].defect}"


def expected(choice: KernelChoice, use: Use) -> str:
    """What a config's kernels will do, in a line for ``rl check``: ``"cpu"``, ``"none: cpu computes on the CPU"``."""
    if choice == "none":
        return "none, as configured"
    kernels = [one.kernel for one in installed().values() if choice == "auto" or one.name in choice]
    found = {kernel.name: kernel.expects(use) for kernel in kernels if kernel is not None}
    if not found:
        return "none is installed"
    used = [name for name, reason in found.items() if reason is None]
    rest = "; ".join(f"not {name}: {reason}" for name, reason in found.items() if reason is not None)
    return "; ".join(part for part in (", ".join(used), rest) if part)
