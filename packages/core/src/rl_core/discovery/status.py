"""The values discovery produces: what was found, what it offers, and how a hook call went."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl_core.component import Component

Status = Literal["ok", "broken", "blocked", "incompatible"]


@dataclass(frozen=True)
class PluginStatus:
    """One entry point of the group ``rl_core.plugins``.

    Attributes:
        name: the entry point's name.
        package: the distribution (pip name) it belongs to.
        version: the distribution's version.
        status: ``ok``; ``broken`` (it failed to import or register); ``blocked`` (switched off by the
            environment); ``incompatible`` (it needs another rl-core; it was not imported).
        reason: why it is not ok; empty otherwise.
        components: what it offers. A plugin that broke half-way lists what it offered until then;
            none of that can be selected.
        module: the light module, e.g. ``"rl_algo_grpo.plugin"``.
    """

    name: str
    package: str
    version: str
    status: Status
    reason: str = ""
    components: tuple[Component, ...] = ()
    module: str = ""


@dataclass(frozen=True)
class Registered:
    """A component that can be selected, and the distribution it comes from."""

    component: Component
    package: str
    version: str


@dataclass(frozen=True)
class HookOutcome:
    """What one plugin made of a hook call: its result, or the exception it raised."""

    package: str
    result: Any = None
    error: BaseException | None = None


def describe(error: BaseException) -> str:
    """One line: type, message and the file:line of the innermost frame outside the import system."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception of a plugin's own
        text = "(its text cannot be shown)"
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if not frame.filename.startswith("<frozen ") and path.parent != Path(__file__).parent:
            place = "" if "importlib" in path.parts else f" ({path.name}:{frame.lineno})"
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
