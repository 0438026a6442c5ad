"""``rl resume``: continue an interrupted run."""

from __future__ import annotations

import typer

from rl_core.cli.framework import AllowOption, OverridesArgument, ProfileOption, RunArgument


def resume_command(
    run_dir: RunArgument,
    overrides: OverridesArgument = None,
    allow: AllowOption = None,
    profile: ProfileOption = False,
) -> None:
    """Continue a run from its last complete checkpoint."""
    from rl_core.training import api

    raise typer.Exit(api.resume(run_dir, overrides or [], allowed=allow or [], profile=profile))
