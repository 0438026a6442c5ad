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


def plugins_command(context: typer.Context, json_output: JsonOption = False) -> None:
    """List installed plugins and the components a config can name."""
    registry: Registry = context.obj
    if json_output:
        import json

        typer.echo(json.dumps({"plugins": [_as_dict(registry, plugin) for plugin in registry.plugins]}, indent=2))
        return
    console = stdout()
    columns = ("kind", "name", "package", "version", "status", "summary")
    console.print(table("Components", columns, _component_rows(registry)))
    rows = [(plugin.package, plugin.version, plugin.status, hide_secrets(plugin.reason)) for plugin in registry.plugins]
    console.print(table("Plugins", ("package", "version", "status", "reason"), rows))


def _as_dict(registry: Registry, plugin: Any) -> dict[str, Any]:
    components = [asdict(c) | {"missing_imports": registry.missing_imports(c)} for c in plugin.components]
    return asdict(plugin) | {"components": components, "reason": hide_secrets(plugin.reason)}


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
