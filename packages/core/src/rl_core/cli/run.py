"""``rl run``: start a run from a config."""

from __future__ import annotations

from typing import Annotated

import typer

from rl_core.cli.framework import AllowOption, ConfigArgument, OverridesArgument, ProfileOption


def run_command(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run if its directory already exists.")] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; short for run.name=NAME.", show_default=False)
    ] = None,
    allow: AllowOption = None,
    profile: ProfileOption = False,
) -> None:
    """Check the config, then train."""
    from rl_core.training import api

    chosen = [*(overrides or []), *([f"run.name={name}"] if name is not None else [])]
    raise typer.Exit(api.run(config, chosen, resume=resume, allowed=allow or [], profile=profile))
