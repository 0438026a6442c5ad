"""A class with plain methods, run in processes that are killed where a call takes too long."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rl_core.contracts.data import Row
from rl_core.contracts.environment import CallFailed, Turn
from rl_core.contracts.tokenizer import Message
from rl_core.errors import ConfigError, RLError
from rl_isolation.describe import cut, one_line, shown
from rl_isolation.outcome import Outcome, ProcessEnded, Raised, Returned, TimedOut
from rl_isolation.pool import Pool
from rl_isolation.worker import Limits, Service, as_error

from rl_env_tools.config import PythonConfig
from rl_env_tools.turns import InvalidTurn, turn_from_json

_DESCRIBE_S = 60.0


@dataclass(eq=False)
class Hosted:
    """A conversation as the driver knows it; its state is in the process.

    Attributes:
        lost: why its state is gone; empty while it is there.
    """

    number: int
    process: _Process
    where: str
    lost: str = ""


@dataclass(eq=False)
class _Process:
    """One process.

    Attributes:
        pool: of one process, which is started again by the first call after it was killed.
        conversations: how many were given to it and are not over.
        living: those whose state is there.
        over: numbers of conversations whose states may be dropped.
    """

    pool: Pool
    conversations: int = 0
    living: set[Hosted] = field(default_factory=set)
    over: list[int] = field(default_factory=list)


class HostedEnvironment:
    """The user's class, with an instance in each process; its code is not imported here.

    A conversation stays in the process that it was started in, the one with the fewest. A call that takes longer than
    ``step_timeout_s``, or ends its process, fails, and so do the conversations whose state was in that process.

    Raises:
        ConfigError: the class cannot be found or built, or lacks a method.
    """

    keeps_deadlines = True

    def __init__(self, config: PythonConfig) -> None:
        self._name = config.name
        self._timeout_s = config.step_timeout_s
        self._numbers = itertools.count()
        service = Service(
            "rl_env_tools.python:Host",
            (config.environment_class, config.arguments, config.name),
            f"environment {config.name!r} (rl-env-tools)",
            package="rl-env-tools",
            not_sent="keep such objects out of rows and of environment.arguments, or write start and step as async def",
            limits=Limits(memory_bytes=config.memory_mb << 20 if config.memory_mb else None),
        )
        self._processes = [_Process(Pool(service, size=1)) for _ in range(config.processes)]
        told = self._described(self._processes[:1])
        self.asynchronous = told["asynchronous"] is True
        self._ends = told["ends"] is True
        self.tools = self._checked_tools(told["tools"])
        if not self.asynchronous:
            # All of them now: processes that come one by one would let conversations continue in several rounds.
            self._described(self._processes[1:])

    async def start(self, row: Row, seed: int) -> Hosted:
        """Start the conversation in the process that has the fewest."""
        process = min(self._processes, key=lambda process: process.conversations)
        conversation = Hosted(next(self._numbers), process, str(row.get("__where__", "another data row")))
        process.conversations += 1
        try:
            await self._call(conversation, "start", row, seed)
        except BaseException:
            process.conversations -= 1
            raise
        process.living.add(conversation)
        return conversation

    async def step(self, state: Hosted, conversation: Sequence[Message]) -> Turn:
        """What the class answers.

        Raises:
            TimeoutError: it took longer than ``step_timeout_s``.
            CallFailed: it raised, ended its process, or answered with what is no turn; or another conversation did
                so that this one's state is lost.
        """
        if not state.lost:
            told = await self._call(state, "step", list(conversation))
            try:
                if told is not None:
                    return turn_from_json(told.get("turn"))
            except InvalidTurn as refused:
                raise CallFailed(str(refused)) from None
        raise CallFailed("has lost the conversation", f": {state.lost}")

    async def end(self, state: Hosted) -> None:
        """The class's ``end``, where it has one and the state is still there."""
        state.process.conversations -= 1
        try:
            if self._ends and not state.lost:
                await self._call(state, "end")
        finally:
            state.process.living.discard(state)
            if not self._ends:
                state.process.over.append(state.number)

    def close(self) -> None:
        """End the processes; each instance may close what it holds."""
        with ThreadPoolExecutor(len(self._processes)) as threads:
            list(threads.map(lambda process: process.pool.close(), self._processes))

    async def _call(self, conversation: Hosted, method: str, *arguments: Any) -> dict[str, Any] | None:
        """What the process answered; None where it no longer has the conversation."""
        process = conversation.process
        over, process.over = process.over, []
        outcome = await asyncio.wrap_future(
            process.pool.submit((over, method, conversation.number, *arguments), timeout_s=self._timeout_s)
        )
        if isinstance(outcome, TimedOut | ProcessEnded):
            self._lose(conversation, outcome, method)
        told = _value(outcome)
        if told.get("lost") is True:
            conversation.lost = conversation.lost or "its process had ended between two calls"
            process.living.discard(conversation)
            return None
        if isinstance(refused := told.get("refused"), str):
            raise CallFailed(one_line(cut(refused)))
        return told

    def _lose(self, culprit: Hosted, outcome: TimedOut | ProcessEnded, method: str) -> None:
        """Tell the conversations whose state was in the process that ended what happened to them."""
        did = outcome.reason if isinstance(outcome, ProcessEnded) else f"took longer than {outcome.timeout_s:g} s"
        place = "" if isinstance(outcome, ProcessEnded) else outcome.place
        why = f"its state was in the same process as the conversation of {culprit.where}, whose {method} {did}{place}"
        for conversation in culprit.process.living:
            conversation.lost = why
        culprit.process.living.clear()
        culprit.lost = f"its {method} {did}{place}"

    def _described(self, processes: Sequence[_Process]) -> dict[str, Any]:
        """What the class is, as the last of the processes tells; the others have built it as well."""
        calls = [process.pool.submit(([], "describe"), timeout_s=_DESCRIBE_S) for process in processes]
        told: dict[str, Any] = {}
        for call in calls:
            try:
                told = _value(call.result())
            except (CallFailed, TimeoutError) as error:
                why = str(error) if isinstance(error, CallFailed) else f"takes longer than {_DESCRIBE_S:g} s {error}"
                raise ConfigError(f"environment {self._name!r} cannot be described: it {why}") from None
            if not {"asynchronous", "ends", "tools"} <= set(told):
                raise ConfigError(f"environment {self._name!r} cannot be described: it answers {shown(told)}")
        return told

    def _checked_tools(self, tools: Any) -> tuple[dict[str, Any], ...]:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ConfigError(
                f"environment {self._name!r}: its tools are {shown(tools)}\n    tools are JSON schemas, as dicts"
            )
        return tuple(tools)


def _value(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Returned(value) if isinstance(value, dict):
            return value
        case Returned(value):
            raise CallFailed(f"gave an answer that is none, {shown(value)},")
        case TimedOut() as late:
            raise TimeoutError(late.place.strip(" ()"))
        case Raised(explained=True) as raised:
            raise as_error(raised)
        case Raised(type="") as raised:
            raise CallFailed(one_line(raised.message))
        case Raised() as raised:
            detail = f": {one_line(raised.message)} ({raised.place or 'no traceback'})"
            raise CallFailed(f"raised {raised.type}", detail)
        case ProcessEnded() as ended:
            raise CallFailed(ended.reason)
    raise RLError("an outcome that is none")
