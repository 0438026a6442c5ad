"""What can be known about a plugin before importing it: its distribution, version and requirements."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from rl_core.discovery.status import describe
from rl_core.errors import EnvironmentProblem
from rl_core.hookspecs import ENTRY_POINT_GROUP

logger = logging.getLogger(__name__)

CORE = "rl-core"
_ENTRY = re.compile(r"[A-Za-z_][\w.]*\s*(:\s*[A-Za-z_][\w.]*)?\s*(\[.*\])?")


@dataclass(frozen=True)
class Candidate:
    """An installed entry point, not imported yet; ``package`` is the normalized distribution name.

    Attributes:
        entry_point: None where ``defect`` says why it cannot be read.
        defect: what is wrong with the distribution's metadata; empty where nothing is.
    """

    name: str
    package: str
    version: str
    entry_point: importlib.metadata.EntryPoint | None
    requires: tuple[str, ...] = ()
    defect: str = ""

    @property
    def module(self) -> str:
        return self.entry_point.module if self.entry_point is not None else ""


def candidates() -> list[Candidate]:
    """Every plugin entry point on ``sys.path``: rl-core first, then by distribution and name.

    Distributions are looked at one by one (``importlib.metadata.entry_points`` raises for all where one cannot be
    read), and of several with the same name only the first on the path counts.
    """
    found: dict[str, list[Candidate]] = {}
    for distribution in importlib.metadata.distributions():
        for package, offered in _offered(distribution):
            found.setdefault(package, offered)
    return sorted(
        (one for group in found.values() for one in group), key=lambda c: (c.package != CORE, c.package, c.name)
    )


def _offered(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, list[Candidate]]]:
    """``(package, its entry points)`` where the distribution has some of our group, readable or not."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        text = bytes(error.object).decode("utf-8", errors="replace")
    except Exception:  # noqa: BLE001 - whatever is wrong with somebody's installed package, it is not for us
        return
    if ENTRY_POINT_GROUP not in text:
        return
    try:
        metadata = distribution.metadata
        name, version = str(metadata["Name"] or ""), str(metadata["Version"] or "unknown")
        requires = tuple(distribution.requires or ())
        defect = ""
    except Exception as error:  # noqa: BLE001
        name, version, requires, defect = "", "unknown", (), f"its metadata cannot be read: {describe(error)}"
    try:
        entries = [one for one in distribution.entry_points if one.group == ENTRY_POINT_GROUP]
    except Exception as error:  # noqa: BLE001
        package = canonicalize_name(name or _named_by(text))
        reason = f"its entry_points.txt cannot be read: {describe(error)}"
        yield package, [Candidate(package, package, version, None, requires, defect or reason)]
        return
    if _is_shadowed(name, distribution):
        return
    offered: dict[str, list[Candidate]] = {}
    for entry in entries:
        # A dist-info folder left behind by an interrupted uninstall has no METADATA and so no name.
        package = canonicalize_name(name or entry.name)
        readable = _ENTRY.fullmatch(entry.value.strip()) is not None
        reason = "" if readable else f"its entry point {entry.name!r} cannot be read: {entry.value!r}"
        one = Candidate(entry.name, package, version, entry if readable else None, requires, defect or reason)
        offered.setdefault(package, []).append(one)
    yield from offered.items()


def _named_by(text: str) -> str:
    """The first name under our group in an entry_points.txt that cannot be parsed."""
    after = text.partition(f"[{ENTRY_POINT_GROUP}]")[2].strip()
    return re.split(r"[=\s]", after, maxsplit=1)[0] or "unnamed"


def _is_shadowed(name: str, distribution: importlib.metadata.Distribution) -> bool:
    """Whether another distribution of this name comes before it on the path."""
    try:
        first = importlib.metadata.distribution(name)
        return str(first.locate_file("")) != str(distribution.locate_file(""))
    except Exception:  # noqa: BLE001
        return False


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
        try:
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
        except Exception as error:  # noqa: BLE001 - packaging raises several kinds for comparisons without meaning
            return f"its metadata holds a requirement that cannot be read: {line!r}: {describe(error)}"
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
