"""``rl check``: everything that can be known about a config without starting it."""

from __future__ import annotations

import typer
from rl_secrets.redaction import hide_secrets

from rl_core.cli.framework import ConfigArgument, OverridesArgument, stdout


def check_command(context: typer.Context, config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """List every problem of a config, or show the plan (rl-plan)."""
    from rl_core.preflight.check import check

    result = check(config, overrides or [], context.obj, import_functions=True)
    for problem in result.problems:
        prefix = "warning: " if problem.severity == "warning" else ""
        typer.echo(hide_secrets(prefix + str(problem)))
    errors = sum(problem.severity == "error" for problem in result.problems)
    if errors or result.config is None:
        typer.echo(f"{errors} problem{'' if errors == 1 else 's'} in {config}", err=True)
        raise typer.Exit(2)
    for plan in result.plans:
        stdout().print(plan.render(result.config, context.obj))
    typer.echo("config ok")
