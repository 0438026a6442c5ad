"""What the package adds to ``rl``: the commands ``rl plugin new`` and ``rl plugin check``."""

from __future__ import annotations

from typing import Any

from rl_core.hookspecs import hookimpl


@hookimpl
def register_commands(app: Any) -> None:
    from rl_plugin_kit.commands import plugin_commands

    app.add_typer(plugin_commands(), name="plugin")
