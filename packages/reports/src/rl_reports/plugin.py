"""What rl-reports adds: the command ``rl runs``."""

from __future__ import annotations

from typing import Any

from rl_core.hookspecs import hookimpl


@hookimpl
def register_commands(app: Any) -> None:
    from rl_core.cli.framework import Command

    from rl_reports.runs import runs_command

    app.command("runs", cls=Command)(runs_command)
