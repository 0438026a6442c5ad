"""``rl plugin``: its commands, one module each."""

from __future__ import annotations

import typer
from rl_core.cli.framework import Command, Group

from rl_plugin_kit.commands.check import check_command
from rl_plugin_kit.commands.new import new_command


def plugin_commands() -> typer.Typer:
    """The group of commands."""
    group = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help="Write and check plugin packages.")
    group.command("new", cls=Command)(new_command)
    group.command("check", cls=Command)(check_command)
    return group
