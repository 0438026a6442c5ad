"""``rl export``: a Hugging Face folder from a run."""

from __future__ import annotations

from typing import Annotated

import typer

from rl_core.cli.framework import RunArgument


def export_command(
    run_dir: RunArgument,
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Checkpoint; default: the newest.", show_default=False)
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Stage; default: the last one.", show_default=False)
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Target; default: inside the run.", show_default=False)
    ] = None,
) -> None:
    """Write a checkpoint's model as a Hugging Face folder."""
    from rl_core.training import api

    raise typer.Exit(api.export(run_dir, step=step, stage=stage, to=to))
