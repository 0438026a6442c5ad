"""The reference page of the command line, from the parser that ``rl`` itself uses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rl_core.cli.main import build_command
from rl_core.discovery.registry import load_registry

MARK = "\b\n"
INTRODUCTION = """# Command line
Exit codes: 0 done, 1 the run failed, 2 the config or the command line is wrong, 3 the environment is, 130 interrupted.
"""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option; ``name`` as it is typed."""

    name: str
    description: str


@dataclass(frozen=True)
class CommandPage:
    """One command with what can follow it."""

    name: str
    usage: str
    description: str
    parameters: tuple[Parameter, ...]


def page() -> str:
    """Markdown for all commands."""
    parts = [INTRODUCTION]
    for one in commands():
        parts.append(f"## `{one.name}`\n{one.description}\n\n```text\n{one.usage}\n```\n")
        if one.parameters:
            rows = "".join(f"| `{p.name}` | {p.description} |\n" for p in one.parameters)
            parts.append(f"| | |\n|---|---|\n{rows}")
    return "\n".join(parts)


def commands() -> list[CommandPage]:
    """Every command, groups and their commands included; the options of ``rl`` itself come first."""
    return list(_walk(build_command(load_registry()), None, "rl"))


def _walk(command: Any, parent: Any, name: str) -> Iterator[CommandPage]:
    context = command.context_class(command, info_name=name.rpartition(" ")[2], parent=parent)
    usage = command.get_usage(context).removeprefix("Usage:").strip()
    yield CommandPage(name, usage, _description(command.help or ""), tuple(_parameters(command, context)))
    if hasattr(command, "list_commands"):
        for child in command.list_commands(context):
            yield from _walk(command.get_command(context, child), context, f"{name} {child}")


def _description(text: str) -> str:
    """The help text as Markdown; a paragraph that ``\\b`` keeps from being wrapped becomes a block."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"```text\n{one.removeprefix(MARK)}\n```" if one.startswith(MARK) else one for one in paragraphs)


def _parameters(command: Any, context: Any) -> Iterator[Parameter]:
    for parameter in command.get_params(context):
        metavar = parameter.metavar or parameter.name.upper()
        if parameter.param_type_name == "argument":
            yield Parameter(metavar, parameter.help or "")
            continue
        flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
        yield Parameter(flags if parameter.is_flag else f"{flags} {metavar}", parameter.help or "")
