"""Plain functions run in processes, which are killed where a call takes too long."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rl_core.contracts.environment import CallFailed
from rl_core.errors import ConfigError
from rl_core.functions import load_function
from rl_isolation.outcome import Outcome, ProcessEnded, Raised, Returned, TimedOut
from rl_isolation.pool import Pool
from rl_isolation.worker import Limits, Service, as_error

from rl_env_tools.config import ToolsConfig
from rl_env_tools.tool import Description, Tool

_DESCRIBE_S = 60.0
_PATIENCE_S = 0.1


class ToolProcesses:
    """The tools of an environment, loaded in processes of their own; their code is not imported here."""

    def __init__(self, config: ToolsConfig) -> None:
        self._name = config.name
        self._timeout_s = config.step_timeout_s
        self._pool = Pool(
            Service(
                f"{__name__}:LoadedTools",
                (config.tools,),
                f"environment {config.name!r} (rl-env-tools)",
                package="rl-env-tools",
                limits=Limits(memory_bytes=config.memory_mb << 20 if config.memory_mb else None),
            ),
            size=config.processes,
            patience_s=_PATIENCE_S,
        )

    def describe(self) -> list[Description]:
        """The tools, in order; starts the first process.

        Raises:
            ConfigError: a function cannot be found, or described to a model.
        """
        (outcome,) = self._pool.map([None], timeout_s=_DESCRIBE_S)
        try:
            described = _value(outcome)
        except (CallFailed, TimeoutError) as error:
            why = str(error) if isinstance(error, CallFailed) else f"takes longer than {_DESCRIBE_S:g} s {error}"
            raise ConfigError(f"environment {self._name!r} cannot describe its tools: it {why}") from None
        return [Description(**{**told, "parameters": tuple(told["parameters"])}) for told in described]

    async def call(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Results of the tools ``(name, arguments)``, run one after the other; cancelling kills the process.

        Raises:
            TimeoutError: they took longer than ``step_timeout_s``.
            CallFailed: a tool ended its process, or what it answered cannot be read.
        """
        outcome = await asyncio.wrap_future(self._pool.submit(list(calls), timeout_s=self._timeout_s))
        return [str(text) for text in _value(outcome)]

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


class LoadedTools:
    """The service in such a process: answers None with the tools' descriptions, calls with their results."""

    def __init__(self, references: Sequence[str]) -> None:
        self._tools = [Tool(load_function(reference), reference=reference) for reference in references]

    def __call__(self, calls: Sequence[tuple[str, Mapping[str, Any]]] | None) -> Any:
        if calls is None:
            return [dataclasses.asdict(tool.description) for tool in self._tools]
        tools = {tool.name: tool for tool in self._tools}
        return [self._text(tools[name], arguments) for name, arguments in calls]

    def _text(self, tool: Tool, arguments: Mapping[str, Any]) -> str:
        result = tool.call(arguments)
        if not inspect.isawaitable(result):
            return result

        async def wait() -> str:
            return await result

        return asyncio.run(wait())  # a plain function that returns a coroutine


def _value(outcome: Outcome) -> Any:
    match outcome:
        case Returned(value) if isinstance(value, list):
            return value
        case TimedOut() as late:
            raise TimeoutError(late.place.strip(" ()"))
        case Raised(explained=True) as raised:
            raise as_error(raised)
        case Raised() as raised:
            raise CallFailed(f"has a tool that {raised.reason}")
        case ProcessEnded() as ended:
            raise CallFailed(f"has a tool that {ended.reason}")
    raise CallFailed("has a tool that gave an answer that is none")
