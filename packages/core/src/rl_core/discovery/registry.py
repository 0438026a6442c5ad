"""The registry: every installed plugin, the components they offer, and the hooks they implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_core.component import KINDS, Component
from rl_core.discovery.entry_points import Discovery, discover, invoke, package_of
from rl_core.discovery.lookup import ComponentNotFound, find_component
from rl_core.discovery.references import missing_imports, resolve_reference
from rl_core.discovery.status import HookOutcome, PluginStatus, Registered
from rl_core.errors import EnvironmentProblem

__all__ = [
    "ComponentNotFound",
    "HookOutcome",
    "PluginStatus",
    "Registered",
    "Registry",
    "load_registry",
    "missing_imports",
]


def load_registry(environ: Mapping[str, str] | None = None) -> Registry:
    """Discover the installed plugins (see :mod:`rl_core.discovery.entry_points`)."""
    return Registry(discover(environ))


class Registry:
    """What is installed. Holds descriptions only; a component is imported by :meth:`resolve`."""

    def __init__(self, discovery: Discovery) -> None:
        self._manager = discovery.manager
        self.plugins: tuple[PluginStatus, ...] = discovery.plugins

    def components(self, kind: str | None = None) -> list[Registered]:
        """Selectable components in the order of :data:`rl_core.component.KINDS`, then by name."""
        if kind is not None and kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
        found = [
            Registered(component, plugin.package, plugin.version)
            for plugin in self.plugins
            if plugin.status == "ok"
            for component in plugin.components
            if kind in (None, component.kind)
        ]
        return sorted(found, key=lambda r: (KINDS.index(r.component.kind), r.component.name, r.package))

    def find(self, kind: str, name: str) -> Registered:
        """The component a config names; ``"distribution/name"`` picks one of several with the same name.

        Raises:
            ComponentNotFound: there is none, it cannot be used, or the bare name is ambiguous.
        """
        return find_component(kind, name, registered=self.components(kind), plugins=self.plugins)

    def resolve(self, reference: str) -> Any:
        """Import ``"package.module:Name"``.

        Raises:
            EnvironmentProblem: it cannot be imported; names the package, the missing module and the pip command.
        """
        return resolve_reference(reference, package=self._owner(reference))

    def missing_imports(self, component: Component) -> tuple[str, ...]:
        """The modules ``component`` needs that are not installed."""
        return missing_imports(component)

    def call(self, hook_name: str, **kwargs: Any) -> list[HookOutcome]:
        """Call a hook on every plugin that implements it, one by one, in pluggy's order.

        An exception ends up in that plugin's outcome; the others are still called.
        """
        caller = getattr(self._manager.hook, hook_name)
        if caller.spec is None or set(caller.spec.argnames) != set(kwargs):
            raise TypeError(f"hook {hook_name!r} does not take exactly the arguments ({', '.join(sorted(kwargs))})")
        outcomes = []
        for implementation in reversed(caller.get_hookimpls()):
            package = package_of(implementation)
            try:
                outcomes.append(HookOutcome(package, invoke(implementation, kwargs)))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - the plugin boundary; sys.exit() is a failure, too
                outcomes.append(HookOutcome(package, error=error))
        return outcomes

    def implements(self, hook_name: str) -> bool:
        """Whether any plugin implements a hook."""
        return bool(getattr(self._manager.hook, hook_name).get_hookimpls())

    def manifest(self) -> dict[str, str]:
        """Distribution → version of every plugin that is ok: what a worker must have as well."""
        return {plugin.package: plugin.version for plugin in self.plugins if plugin.status == "ok"}

    def check_manifest(self, manifest: Mapping[str, str]) -> None:
        """Compare with the manifest of the process that started the run. Further plugins here are allowed.

        Raises:
            EnvironmentProblem: lists every plugin that is missing, not ok, or of another version here.
        """
        here = {plugin.package: plugin for plugin in self.plugins if plugin.status == "ok"}
        unusable = {plugin.package: plugin for plugin in self.plugins if plugin.status != "ok"}
        lines, wanted = [], []
        for package, version in sorted(manifest.items()):
            if package in here and here[package].version == version:
                continue
            wanted.append(f"{package}=={version}")
            if package in here:
                lines.append(f"{package}: {version} in the driver, {here[package].version} here")
            elif package in unusable:
                lines.append(f"{package}: {unusable[package].status} here: {unusable[package].reason}")
            else:
                lines.append(f"{package}: {version} in the driver, not installed here")
        if lines:
            findings = "".join(f"\n    {line}" for line in lines)
            raise EnvironmentProblem(
                f"the plugins on this machine differ from those of the driver:{findings}\n"
                f"    pip install {' '.join(wanted)}"
            )

    def _owner(self, reference: str) -> str:
        """The distribution whose component or plugin module a reference belongs to; empty for the user's own code."""
        for plugin in self.plugins:
            if any(reference in (c.factory, c.config, c.memory_estimate) for c in plugin.components):
                return plugin.package
        top = reference.partition(":")[0].partition(".")[0]
        return next((p.package for p in self.plugins if p.module.partition(".")[0] == top), "")
