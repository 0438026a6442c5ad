"""From what the user types to the names in a new package; everything wrong with them is found here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rl_core.config.suggest import closest
from rl_core.errors import ConfigError

from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS, PluginKind

LONGEST_NAME = 32
"""Characters; with longer names the lines of the generated sources would exceed the line length."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class PackageNames:
    """The names in one package.

    Attributes:
        kind: what is offered.
        name: the component's name, as configs will write it: ``best-of-n``.
    """

    kind: PluginKind
    name: str

    @property
    def package(self) -> str:
        """For pip, and the folder: ``rl-reward-best-of-n``."""
        return f"rl-{self.kind.name}-{self.name}"

    @property
    def module(self) -> str:
        """For Python: ``rl_reward_best_of_n``."""
        return self.package.replace("-", "_")

    @property
    def class_name(self) -> str:
        """Of the implementation: ``BestOfNReward``."""
        words = "".join(part.capitalize() for part in self.name.split("-"))
        # The suffix alone would give the config the name of its base class.
        repeats = words.endswith(self.kind.suffix) and words != self.kind.suffix
        return words if repeats else words + self.kind.suffix

    @property
    def identifier(self) -> str:
        """The name within Python and metric names: ``best_of_n``."""
        return self.name.replace("-", "_")


def find_kind(typed: str) -> PluginKind:
    """The kind by name, or by the name of its component (``data_source``).

    Raises:
        ConfigError: there is no such kind; names the closest one.
    """
    for kind in PLUGIN_KINDS:
        if typed in (kind.name, kind.component):
            return kind
    options = [kind.name for kind in PLUGIN_KINDS]
    near = closest(typed, options)
    hint = f"did you mean {near!r}? " if near else ""
    raise ConfigError(f"there is no kind of plugin {typed!r}\n    {hint}choose one of {', '.join(options)}")


def package_names(kind: PluginKind, name: str) -> PackageNames:
    """Check ``name`` and derive the others from it.

    Raises:
        ConfigError: it is not usable as a package name, too long, or repeats the prefix that is added anyway.
    """
    if not _NAME.fullmatch(name):
        proposal = _repaired(name)
        hint = f", for example {proposal}" if proposal else ""
        raise ConfigError(
            f"{name!r} is not a valid package name\n"
            f"    write it with lower-case letters, digits and single hyphens, beginning with a letter{hint}"
        )
    if len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{name!r} is not a valid package name: it has {len(name)} characters, {LONGEST_NAME} are allowed\n"
            "    choose a shorter one; the summary in plugin.py has room for the rest"
        )
    prefix = f"rl-{kind.name}-"
    if name.startswith(prefix):
        raise ConfigError(
            f"the package would be called {prefix}{name}: {prefix} is added to the name\n"
            f"    rl plugin new {kind.name} {name.removeprefix(prefix)}"
        )
    return PackageNames(kind, name)


def _repaired(name: str) -> str:
    """The nearest valid name; empty where nothing usable is left of it."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)
    plain = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    plain = re.sub(r"^[0-9-]+", "", plain)
    return plain if len(plain) <= LONGEST_NAME else ""
