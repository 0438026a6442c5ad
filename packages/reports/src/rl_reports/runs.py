"""``rl runs``: the runs below a directory and how far each one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rl_core.cli.framework import stdout, table
from rl_secrets.redaction import hide_secrets

if TYPE_CHECKING:
    from rl_reports.run_summary import RunSummary


def runs_command(
    directory: Annotated[str, typer.Argument(metavar="[DIR]", help="Folder that holds run directories.")] = "runs",
) -> None:
    """List runs with their status, step and newest metrics."""
    from pathlib import Path

    from rl_core.errors import ConfigError

    from rl_reports.run_summary import summarize_runs

    path = Path(directory)
    if not path.is_dir():
        if directory == "runs":
            typer.echo("no runs yet: there is no folder runs/ here")
            return
        raise ConfigError(f"there is no folder {directory}\n    rl runs DIR lists the runs in DIR")
    summaries = summarize_runs(path)
    if not summaries:
        typer.echo(f"no runs in {directory}")
        return
    columns = ("name", "status", "stage", "step", "reward", "accuracy", "loss", "age", "path")
    stdout().print(table("Runs", columns, [_row(one) for one in summaries]))
    for one in summaries:
        if one.error:
            typer.echo(hide_secrets(f"{one.name}: {one.error.splitlines()[0]}"))


def _row(one: RunSummary) -> tuple[str, ...]:
    return (
        one.name,
        one.status,
        one.stage,
        "" if one.step is None else str(one.step),
        _number(one.reward),
        _number(one.accuracy),
        _number(one.loss),
        age(one.age_s),
        str(one.path),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def age(seconds: float) -> str:
    """``12 s``, ``5 min``, ``3 h`` or ``2 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
