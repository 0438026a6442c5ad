"""``rl eval``: run the evaluators without training."""

from __future__ import annotations

from typing import Annotated

import typer

from rl_core.cli.framework import OverridesArgument


def evaluate_command(
    path: Annotated[str, typer.Argument(metavar="CONFIG|RUN_DIR", help="A config, or the directory of a run.")],
    overrides: OverridesArgument = None,
) -> None:
    """Run the evaluators of a config or a run, without training."""
    from rl_core.training import api

    raise typer.Exit(api.evaluate(path, overrides or []))
