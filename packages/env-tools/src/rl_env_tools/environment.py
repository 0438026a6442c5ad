"""The environment ``tools``: runs the functions a model calls, and shows it what they returned."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence

from rl_core.contracts.data import Row
from rl_core.contracts.environment import Turn
from rl_core.contracts.tokenizer import Message
from rl_core.functions import load_function

from rl_env_tools.calls import Call, bracket_calls, hermes_calls
from rl_env_tools.config import ToolsConfig
from rl_env_tools.tool import Tool


class ToolEnvironment:
    """A turn with calls is answered with their results; a turn without one is the model's answer and ends it.

    A call that cannot be understood, an unknown tool, arguments that do not fit and an exception in a tool are
    answered with a text that begins with ``error:``. Conversations have no state.
    """

    def __init__(self, config: ToolsConfig) -> None:
        self.config = config
        self._tools = {tool.name: tool for tool in (Tool(load_function(ref), reference=ref) for ref in config.tools)}
        self.tools = tuple(tool.schema for tool in self._tools.values())

    def start(self, row: Row, seed: int) -> None:
        """Nothing is kept."""

    def step(self, state: None, conversation: Sequence[Message]) -> Turn | Awaitable[Turn]:
        """Run the calls of the last message, one after the other."""
        calls = self._calls(str(conversation[-1]["content"]))
        if not calls:
            return Turn(done=True)
        results = [self._result(call) for call in calls]
        if any(inspect.isawaitable(result) for result in results):
            return self._awaited(calls, results)
        return self._turn(calls, [str(result) for result in results])

    def _calls(self, text: str) -> list[Call]:
        if self.config.format == "hermes":
            return hermes_calls(text)
        parameters = {name: tool.parameters for name, tool in self._tools.items()}
        return bracket_calls(text, parameters, raw=frozenset(n for n, t in self._tools.items() if t.takes_only_text))

    def _result(self, call: Call) -> str | Awaitable[str]:
        if call.error:
            return f"error: {call.error}"
        tool = self._tools.get(call.tool)
        if tool is None:
            return f"error: there is no tool {call.tool!r}; tools: {', '.join(self._tools)}"
        return tool.call(call.arguments)

    async def _awaited(self, calls: Sequence[Call], results: Sequence[str | Awaitable[str]]) -> Turn:
        return self._turn(calls, [r if isinstance(r, str) else await r for r in results])

    def _turn(self, calls: Sequence[Call], results: Sequence[str]) -> Turn:
        messages = []
        for call, result in zip(calls, results, strict=True):
            text = self.config.result_text.replace("{tool}", call.tool).replace("{result}", result)
            messages.append({"role": self.config.result_role, "name": call.tool, "content": text})
        return Turn(messages=messages, done=False)
