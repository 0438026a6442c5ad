"""``rl plugins``: what is installed, what it offers, and what did not load."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rl_secrets.redaction import hide_secrets

from rl_core.cli.framework import JsonOption, stdout, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rl_core.discovery.registry import Registry


_KERNEL = ("name", "package", "version")


def plugins_command(context: typer.Context, json_output: JsonOption = False) -> None:
    """List installed plugins and the components a config can name."""
    registry: Registry = context.obj
    if json_output:
        import json

        kernels = [dict(zip(_KERNEL, row, strict=True)) for row in _kernel_rows()]
        plugins = [_as_dict(registry, plugin) for plugin in registry.plugins]
        typer.echo(json.dumps({"plugins": plugins, "kernels": kernels}, indent=2))
        return
    console = stdout()
    columns = ("kind", "name", "package", "version", "status", "summary")
    console.print(table("Components", columns, _component_rows(registry)))
    rows = [(plugin.package, plugin.version, plugin.status, hide_secrets(plugin.reason)) for plugin in registry.plugins]
    console.print(table("Plugins", ("package", "version", "status", "reason"), rows))
    if found := _kernel_rows():
        console.print(table("Kernels", _KERNEL, found))


def _as_dict(registry: Registry, plugin: Any) -> dict[str, Any]:
    components = [asdict(c) | {"missing_imports": registry.missing_imports(c)} for c in plugin.components]
    return asdict(plugin) | {"components": components, "reason": hide_secrets(plugin.reason)}


def _kernel_rows() -> list[tuple[str, ...]]:
    """Packages that compute models faster; ``rl doctor`` says what each does on this machine."""
    from importlib.metadata import entry_points

    points = sorted(entry_points(group="rl_torch.kernels"), key=lambda point: point.name)
    return [(point.name, point.dist.name, point.dist.version) for point in points if point.dist is not None]


def _component_rows(registry: Registry) -> Iterator[tuple[str, ...]]:
    """By kind, then name; what a plugin offered before it broke is listed, too, but cannot be selected."""
    from rl_core.component import KINDS

    offered = [(component, plugin) for plugin in registry.plugins for component in plugin.components]
    previous = ""
    for one, plugin in sorted(offered, key=lambda pair: (KINDS.index(pair[0].kind), pair[0].name, pair[1].package)):
        missing = registry.missing_imports(one)
        note = f" (not installed: {', '.join(missing)})" if missing else ""
        kind = one.kind.replace("_", " ") if one.kind != previous else ""
        yield kind, one.name, plugin.package, plugin.version, plugin.status, one.summary + note
        previous = one.kind
