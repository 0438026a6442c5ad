"""What rl-reports adds: the command ``rl runs``, and the profile of ``rl run --profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_reports.profile import Profile


@hookimpl
def profile_stage(stage: Any, pool: Any, directory: Path) -> Profile:
    from rl_reports.profile import Profile, free_folder

    return Profile(stage, pool, free_folder(directory / "profile"))


@hookimpl
def register_commands(app: Any) -> None:
    from rl_core.cli.framework import Command

    from rl_reports.runs import runs_command

    app.command("runs", cls=Command)(runs_command)
