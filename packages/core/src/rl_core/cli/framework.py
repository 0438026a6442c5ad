"""Shared parts of all commands: command classes that start fast, console output, and the common arguments."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rl_secrets.redaction import hide_secrets
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table


class Command(TyperCommand):
    """A command whose ``--help`` flag needs no conversion."""

    def get_help_option(self, ctx: Any) -> Any:
        return _flag_without_conversion(super().get_help_option(ctx))


class Group(TyperGroup):
    """The group of all commands, with the same flag."""

    def get_help_option(self, ctx: Any) -> Any:
        return _flag_without_conversion(super().get_help_option(ctx))


def _flag_without_conversion(option: Any) -> Any:
    # Typer converts an unset (None) option through pydantic, which costs 0.1 s, but leaves booleans alone.
    if option is not None and option.default is None:
        option.default = False
    return option


ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_DIR", help="Directory of an earlier run.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Change a value, e.g. algorithm.group_size=16.", show_default=False),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="KEY",
        help="On resume: let this key (or section) change; restart: train a stage again whose checkpoints are gone.",
        show_default=False,
    ),
]
ProfileOption = Annotated[
    bool,
    typer.Option("--profile", help="Show where the time of the steps goes, and trace a few of them (RUN_DIR/profile)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def stdout() -> Console:
    """A console on standard output; wide where the output is not a terminal, so that nothing is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain text: square brackets in a cell are text, not markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    built = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        built.add_column(column, overflow="fold")
    for row in rows:
        built.add_row(*(Text(value) for value in row))
    return built


def warn(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"warning: {hide_secrets(text)}", err=True)
