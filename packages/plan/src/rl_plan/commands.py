"""The commands ``rl doctor`` (is this machine able to train, and what to do where it is not) and ``rl schema``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import typer
from rl_core.cli.framework import JsonOption, stdout, table
from rl_secrets.redaction import hide_secrets

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry


def schema_command(context: typer.Context) -> None:
    """Print the JSON schema of a config."""
    from rl_plan.schema import json_schema

    typer.echo(json.dumps(json_schema(context.obj), indent=2))


def doctor_command(context: typer.Context, json_output: JsonOption = False) -> None:
    """Examine this machine and installation.

    Looks at Python, PyTorch, GPUs, Ray, memory, disk, limits and plugins; what is wrong comes with what to do about
    it. Exit code 3 if anything fails.
    """
    from rl_core.cluster.ray_address import ray_address

    from rl_plan.doctor import machine_checks, software_checks
    from rl_plan.doctor.finding import examine

    registry: Registry = context.obj
    findings = [
        *examine("Python", software_checks.python),
        *examine("system", machine_checks.system),
        *examine("memory", machine_checks.memory),
        *examine("disk", machine_checks.disk),
        *examine("shared memory", machine_checks.shared_memory),
        *examine("network", lambda: machine_checks.network(ray_address())),
        *examine("open files", machine_checks.open_files),
        *examine("processes", machine_checks.processes),
        *examine("locked memory", machine_checks.locked_memory),
        *examine("PyTorch", software_checks.torch),
        *examine("Ray", software_checks.ray),
        *examine("Ray cluster", lambda: software_checks.ray_cluster(ray_address())),
        *examine("vLLM", software_checks.vllm),
        *examine("plugins", lambda: software_checks.plugins(registry)),
        *examine("kernels", software_checks.kernels),
        *examine("requirements", lambda: software_checks.requirements(registry)),
    ]
    findings = [replace(one, detail=hide_secrets(one.detail), fix=hide_secrets(one.fix)) for one in findings]
    failed = any(finding.status == "fail" for finding in findings)
    if json_output:
        typer.echo(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        rows = [(finding.check, finding.status, finding.detail, finding.fix) for finding in findings]
        stdout().print(table("Findings", ("check", "status", "detail", "fix"), rows))
    if failed:
        raise typer.Exit(3)
