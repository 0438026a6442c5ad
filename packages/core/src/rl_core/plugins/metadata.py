"""What can be known about a plugin before importing it: its distribution, version and requirements."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from rl_core.errors import EnvironmentProblem
from rl_core.hookspecs import ENTRY_POINT_GROUP

logger = logging.getLogger(__name__)

CORE = "rl-core"


@dataclass(frozen=True)
class Candidate:
    """An installed entry point, not imported yet; ``package`` is the normalized distribution name."""

    name: str
    package: str
    version: str
    entry_point: importlib.metadata.EntryPoint
    requires: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return self.entry_point.module


def candidates() -> list[Candidate]:
    """Every plugin entry point on ``sys.path``: rl-core first, then by distribution and name."""
    found = [_candidate(entry) for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)]
    return sorted(found, key=lambda c: (c.package != CORE, c.package, c.name))


def _candidate(entry: importlib.metadata.EntryPoint) -> Candidate:
    dist = entry.dist
    # A dist-info folder left behind by an interrupted uninstall has no METADATA and so no name.
    name = dist.metadata["Name"] if dist is not None else None
    version = dist.metadata["Version"] if dist is not None else None
    requires = tuple(dist.requires or ()) if dist is not None else ()
    return Candidate(entry.name, canonicalize_name(name or entry.name), version or "unknown", entry, requires)


def core_version() -> str:
    """The installed version of rl-core."""
    try:
        return importlib.metadata.version(CORE)
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentProblem(
            "rl_core can be imported, but the distribution rl-core is not installed, so plugin versions cannot be "
            "checked\n    pip install rl-core"
        ) from None


def incompatibility(candidate: Candidate, core: str) -> str:
    """Why the candidate's ``Requires-Dist`` rules out version ``core`` of rl-core; empty where it fits."""
    for line in candidate.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return f"its metadata holds a requirement that cannot be read: {line!r}"
        if canonicalize_name(requirement.name) != CORE:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(core, prereleases=True):
            return f"it needs rl-core{requirement.specifier}, but rl-core {core} is installed"
    return ""


@dataclass(frozen=True)
class Selection:
    """Which distributions the environment switches off.

    ``RL_DISABLE_PLUGINS=a,b`` blocks a and b. ``RL_PLUGINS=a,b`` blocks everything but a, b and
    rl-core. Names are compared as pip compares them (case, ``-`` and ``_`` do not matter).
    """

    allowed: frozenset[str] | None
    disabled: frozenset[str]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Selection:
        allowed = _names(environ["RL_PLUGINS"]) if "RL_PLUGINS" in environ else None
        return cls(allowed, _names(environ.get("RL_DISABLE_PLUGINS", "")))

    def blocked(self, package: str) -> str:
        """Why ``package`` is blocked; empty where it is not."""
        if package in self.disabled:
            return "switched off by RL_DISABLE_PLUGINS"
        if self.allowed is not None and package != CORE and package not in self.allowed:
            return "not among the plugins named in RL_PLUGINS"
        return ""

    def warn_unknown(self, found: Sequence[Candidate]) -> None:
        """Log names that match no installed plugin: a typo there would otherwise change nothing, silently."""
        installed = {c.package for c in found}
        for variable, names in (("RL_PLUGINS", self.allowed or ()), ("RL_DISABLE_PLUGINS", self.disabled)):
            for name in sorted(set(names) - installed):
                logger.warning("%s names %s, which is not an installed plugin", variable, name)


def _names(value: str) -> frozenset[str]:
    return frozenset(canonicalize_name(name.strip()) for name in value.split(",") if name.strip())
