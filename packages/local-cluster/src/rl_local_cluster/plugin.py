"""What this package adds: ``rl cluster``, and the address ``cluster``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_local_cluster.local import LocalCluster


@hookimpl
def find_cluster(name: str) -> LocalCluster | None:
    from rl_local_cluster.local import named

    return named(name)


@hookimpl
def register_commands(app: Any) -> None:
    import typer
    from rl_core.cli.framework import Command, Group

    from rl_local_cluster import commands

    summary = "A Ray on this machine that later runs join."
    group = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help=summary)
    for name in ("start", "status", "stop"):
        group.command(name, cls=Command)(getattr(commands, f"{name}_command"))
    app.add_typer(group, name="cluster")
