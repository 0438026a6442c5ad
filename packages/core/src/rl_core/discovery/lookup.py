"""Finding one component by name, and explaining why it is not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files

from packaging.utils import canonicalize_name

from rl_core.discovery.status import PluginStatus, Registered
from rl_core.errors import ConfigError


class ComponentNotFound(ConfigError):
    """No component, or more than one, answers to a name.

    Attributes:
        message: what is wrong.
        fix: what to type instead.
    """

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}\n    {fix}" if fix else message)
        self.message = message
        self.fix = fix


def find_component(
    kind: str, name: str, *, registered: Sequence[Registered], plugins: Sequence[PluginStatus]
) -> Registered:
    """The component ``name`` (or ``"distribution/name"``) of a kind.

    Args:
        registered: every selectable component of the kind.
        plugins: every plugin found, whatever its status.

    Raises:
        ComponentNotFound: nothing or several components match.
    """
    package, slash, bare = name.rpartition("/")
    package = canonicalize_name(package) if slash else ""
    matches = [r for r in registered if r.component.name == bare and package in ("", r.package)]
    if len(matches) == 1:
        return matches[0]
    label = kind.replace("_", " ")
    if matches:
        choices = " or ".join(f"{r.package}/{bare}" for r in matches)
        owners = ", ".join(r.package for r in matches)
        raise ComponentNotFound(f"{label} {bare!r} is offered by {len(matches)} packages: {owners}", f"write {choices}")
    if package:
        raise _not_in_package(label, bare, package, registered, plugins)
    raise _unknown(kind, bare, registered, plugins)


def published() -> dict[str, dict[str, str]]:
    """Kind (or ``command``, ``hook``, ``cluster``) → name → the published distribution that offers it; for messages."""
    return json.loads(files("rl_core.discovery").joinpath("published.json").read_text(encoding="utf-8"))


def _not_in_package(
    label: str, name: str, package: str, registered: Sequence[Registered], plugins: Sequence[PluginStatus]
) -> ComponentNotFound:
    statuses = [p for p in plugins if p.package == package]
    if not statuses:
        return ComponentNotFound(f"{label} {name!r}: {package} is not installed", f"pip install {package}")
    unloaded = next((p for p in statuses if p.status != "ok"), None)
    if unloaded is not None:
        return _unusable(label, name, unloaded)
    offered = sorted(r.component.name for r in registered if r.package == package)
    if not offered:
        return ComponentNotFound(f"{package} offers no {label}", "`rl plugins` lists what it offers")
    return ComponentNotFound(f"{package} offers no {label} {name!r}", f"it offers: {', '.join(offered)}")


def _unknown(
    kind: str, name: str, registered: Sequence[Registered], plugins: Sequence[PluginStatus]
) -> ComponentNotFound:
    label = kind.replace("_", " ")
    known = published().get(kind, {})
    unloaded = [p for p in plugins if p.status != "ok"]
    for plugin in unloaded:
        if any((c.kind, c.name) == (kind, name) for c in plugin.components) or known.get(name) == plugin.package:
            return _unusable(label, name, plugin)
    if name in known:
        package = known[name]
        if any(p.package == package for p in plugins):
            return ComponentNotFound(
                f"the installed version of {package} does not offer {label} {name!r}",
                f"pip install --upgrade {package}",
            )
        return ComponentNotFound(f"{label} {name!r} is not installed", f"pip install {package}")
    return ComponentNotFound(f"unknown {label} {name!r}", _suggestion(label, name, registered, known, unloaded))


def _suggestion(
    label: str, name: str, registered: Sequence[Registered], known: dict[str, str], unloaded: Sequence[PluginStatus]
) -> str:
    installed = sorted({r.component.name for r in registered})
    question = ""
    if close := get_close_matches(name, installed, n=1):
        question = f"did you mean {close[0]!r}? "
    elif close := get_close_matches(name, known, n=1):
        question = f"did you mean {close[0]!r}? pip install {known[close[0]]}; "
    parts = [f"installed: {', '.join(installed)}" if installed else f"no {label} is installed"]
    # A plugin that is not in the catalogue and was never imported may be the one that offers it.
    in_catalogue = {package for names in published().values() for package in names.values()}
    suspects = [p for p in unloaded if not p.components and p.package not in in_catalogue]
    if suspects:
        parts.append("not loaded: " + ", ".join(f"{p.package} ({p.status})" for p in suspects) + ", see `rl plugins`")
    return question + "; ".join(parts)


def _unusable(label: str, name: str, plugin: PluginStatus) -> ComponentNotFound:
    fixes = {
        "blocked": f"unset or edit {'RL_PLUGINS' if 'RL_PLUGINS' in plugin.reason else 'RL_DISABLE_PLUGINS'}",
        "incompatible": f"pip install --upgrade rl-core {plugin.package}",
        "broken": f"pip install --upgrade {plugin.package}",
    }
    return ComponentNotFound(
        f"{label} {name!r} cannot be used: {plugin.package} {plugin.version} is {plugin.status}: {plugin.reason}",
        fixes[plugin.status],
    )
