"""The environment ``tools``: runs the functions a model calls, and shows it what they returned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from rl_core.contracts.data import Row
from rl_core.contracts.environment import Turn
from rl_core.contracts.tokenizer import Message
from rl_isolation.functions import load_function

from rl_env_tools.calls import Call, bracket_calls, hermes_calls
from rl_env_tools.config import ToolsConfig
from rl_env_tools.processes import ToolProcesses
from rl_env_tools.tool import Tool


class ToolEnvironment:
    """A turn with calls is answered with their results; a turn without one is the model's answer and ends it.

    A call that cannot be understood, an unknown tool, arguments that do not fit and an exception in a tool are
    answered with a text that begins with ``error:``. Conversations have no state, so plain functions run in processes,
    which are killed where the calls of a turn take longer than ``step_timeout_s``. Coroutine functions run on the
    environment's event loop, so that many can wait at once, and are cancelled.

    Raises:
        ConfigError: a function cannot be found, or described to a model.
    """

    keeps_deadlines = True

    def __init__(self, config: ToolsConfig) -> None:
        self.config = config
        self._processes = ToolProcesses(config)
        described = self._processes.describe()
        self._described = {one.name: one for one in described}
        self.tools = tuple(one.schema for one in described)
        self._coroutines = {
            one.name: Tool(load_function(reference), reference=reference)
            for one, reference in zip(described, config.tools, strict=True)
            if one.asynchronous
        }

    def start(self, row: Row, seed: int) -> None:
        """Nothing is kept."""

    async def step(self, state: None, conversation: Sequence[Message]) -> Turn:
        """Run the calls of the last message: plain functions, then coroutine functions, each one after the other.

        Raises:
            TimeoutError: either took longer than ``step_timeout_s``.
        """
        calls = self._calls(str(conversation[-1]["content"]))
        if not calls:
            return Turn(done=True)
        results: dict[int, str] = {i: error for i, call in enumerate(calls) if (error := self._refusal(call))}
        plain = [i for i, call in enumerate(calls) if i not in results and call.tool not in self._coroutines]
        if plain:
            texts = await self._processes.call([(calls[i].tool, dict(calls[i].arguments)) for i in plain])
            results |= dict(zip(plain, texts, strict=True))
        async with asyncio.timeout(self.config.step_timeout_s):
            for i, call in enumerate(calls):
                if i not in results:
                    results[i] = await _awaited(self._coroutines[call.tool].call(call.arguments))
        return self._turn(calls, [results[i] for i in range(len(calls))])

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def _calls(self, text: str) -> list[Call]:
        if self.config.format == "hermes":
            return hermes_calls(text)
        parameters = {name: tool.parameters for name, tool in self._described.items()}
        raw = frozenset(name for name, tool in self._described.items() if tool.takes_only_text)
        return bracket_calls(text, parameters, raw=raw)

    def _refusal(self, call: Call) -> str:
        """The error text for a call that cannot be made; empty if it can."""
        if call.error:
            return f"error: {call.error}"
        if call.tool not in self._described:
            return f"error: there is no tool {call.tool!r}; tools: {', '.join(self._described)}"
        return ""

    def _turn(self, calls: Sequence[Call], results: Sequence[str]) -> Turn:
        messages = []
        for call, result in zip(calls, results, strict=True):
            text = self.config.result_text.replace("{tool}", call.tool).replace("{result}", result)
            messages.append({"role": self.config.result_role, "name": call.tool, "content": text})
        return Turn(messages=messages, done=False)


async def _awaited(result: str | Awaitable[str]) -> str:
    return result if isinstance(result, str) else await result
