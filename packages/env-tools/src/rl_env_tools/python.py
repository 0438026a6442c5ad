"""The environment ``python``: an instance of the user's own class, in processes or in the driver."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_core.contracts.environment import Environment
from rl_core.errors import ConfigError, RLError
from rl_isolation.functions import load_function

from rl_env_tools.config import PythonConfig
from rl_env_tools.hosted import HostedEnvironment
from rl_env_tools.turns import turn_as_json


def load_environment(config: PythonConfig) -> Environment:
    """``Class(**arguments)``: in processes where start and step are plain functions, in the driver where one is async.

    Raises:
        ConfigError: the class cannot be found or built, or lacks a method.
    """
    hosted = HostedEnvironment(config)
    if not hosted.asynchronous:
        return hosted
    hosted.close()
    return build(config.environment_class, config.arguments, name=config.name)


def build(reference: str, arguments: Mapping[str, Any], *, name: str) -> Environment:
    """An instance of the class.

    Raises:
        ConfigError: the class cannot be found or built, or lacks a method.
    """
    make = load_function(reference)
    try:
        environment = make(**arguments)
    except RLError:
        raise
    except Exception as error:
        raise ConfigError(
            f"environment {name!r}: {reference} cannot be built: {type(error).__name__}: {error}\n"
            "    its constructor takes environment.arguments as keywords"
        ) from error
    lacking = [name for name in ("start", "step") if not callable(getattr(environment, name, None))]
    if lacking:
        raise ConfigError(
            f"environment {name!r}: {reference} has no method {' and no '.join(map(repr, lacking))}\n"
            "    an environment has start(row, seed) and step(state, conversation)"
        )
    return environment


class Host:
    """The service in such a process: the instance, and the states of the conversations that were started here.

    A class with coroutines is not built: it will not run here. A task is ``(ended, method, *arguments)``: numbers of
    conversations that are over, and what to call. A conversation that is not here is answered with ``{"lost": true}``.
    """

    def __init__(self, reference: str, arguments: Mapping[str, Any], name: str) -> None:
        found = load_function(reference)
        elsewhere = inspect.isclass(found) and _asynchronous(found)
        self._environment: Any = found if elsewhere else build(reference, arguments, name=name)
        self._states: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, task: tuple[Any, ...]) -> dict[str, Any]:
        ended, method, *arguments = task
        for number in ended:
            self._states.pop(number, None)
        answer: dict[str, Any] = getattr(self, f"_{method}")(*arguments)
        return answer

    def close(self) -> None:
        """Let the instance close what it holds."""
        if hasattr(self._environment, "close") and not inspect.isclass(self._environment):
            self._environment.close()
        if self._loop is not None:
            self._loop.close()

    def _describe(self) -> dict[str, Any]:
        return {
            "asynchronous": _asynchronous(self._environment),
            "ends": hasattr(self._environment, "end"),
            "tools": [] if inspect.isclass(self._environment) else list(getattr(self._environment, "tools", ())),
        }

    def _start(self, number: int, row: Mapping[str, Any], seed: int) -> dict[str, Any]:
        self._states[number] = self._result(self._environment.start(row, seed))
        return {}

    def _step(self, number: int, conversation: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if number not in self._states:
            return {"lost": True}
        return turn_as_json(self._result(self._environment.step(self._states[number], conversation)))

    def _end(self, number: int) -> dict[str, Any]:
        if number not in self._states:
            return {"lost": True}
        self._result(self._environment.end(self._states.pop(number)))
        return {}

    def _result(self, value: Any) -> Any:
        """What a plain function returned; of a wrapped coroutine function what its coroutine returns."""
        if not inspect.isawaitable(value):
            return value

        async def wait() -> Any:
            return await value

        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(wait())


def _asynchronous(environment: Any) -> bool:
    methods: list[Callable[..., Any]] = [getattr(environment, name, _plain) for name in ("start", "step")]
    return any(inspect.iscoroutinefunction(inspect.unwrap(method)) for method in methods)


def _plain() -> None:
    """Stands for a method that is not there."""
