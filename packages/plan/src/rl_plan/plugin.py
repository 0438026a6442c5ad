"""What rl-plan adds: the commands ``rl doctor`` and ``rl schema``, and the plan that ``rl check`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_core.preflight.draft import Draft

    from rl_plan.run_plan import Plan


@hookimpl
def plan_run(draft: Draft) -> Plan:
    from rl_plan.run_plan import plan

    return plan(draft)


@hookimpl
def register_commands(app: Any) -> None:
    from rl_core.cli.framework import Command

    from rl_plan.commands import doctor_command, schema_command

    app.command("schema", cls=Command)(schema_command)
    app.command("doctor", cls=Command)(doctor_command)
