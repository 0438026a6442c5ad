"""Config models of the environments."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator
from rl_core.config.environment import EnvironmentConfig
from rl_core.config.paths import FunctionRef
from rl_core.config.problems import Problem
from rl_isolation.functions import missing_function

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


class _ProcessesConfig(EnvironmentConfig):
    """Options of code that runs in processes."""

    workers: int | None = Field(
        None,
        ge=1,
        description="Most processes that plain functions and methods run in; each runs one call at a time. Default: "
        "one per processor, at least 4. More of them serve code that waits, such as clients of a server.",
    )
    memory_mb: int | None = Field(
        None, ge=64, description="Address space of such a process in MiB; null for no limit. Ignored outside Linux."
    )

    @property
    def processes(self) -> int:
        """Most processes."""
        return min(self.concurrency, self.workers or max(4, os.cpu_count() or 1))


class ToolsConfig(_ProcessesConfig):
    """Functions the model may call."""

    gives_reward: ClassVar[bool] = False

    tools: tuple[FunctionRef, ...] = Field(
        min_length=1, description="Python functions, module:function or file.py:function; async def works as well."
    )
    format: Literal["hermes", "brackets"] = Field(
        "hermes",
        description='How a call is written: <tool_call>{"name": …, "arguments": {…}}</tool_call>, as Hermes and Qwen '
        "models do, or [name(arguments)].",
    )
    result_role: str = Field("tool", min_length=1, description="Role of the messages that hold results.")
    result_text: str = Field(
        "{result}", description="Text of these messages; {result} and {tool} stand for the result and its tool's name."
    )

    @field_validator("result_text")
    @classmethod
    def _holds_the_result(cls, text: str) -> str:
        if "{result}" not in text:
            raise ValueError(f"{text!r} has no {{result}}, so the model would never see one")
        return text

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """Tools that do not exist, as far as that shows without running the user's code, or share a name."""
        for index, tool in enumerate(self.tools):
            if (found := missing_function(tool)) is not None:
                yield Problem(f"tools.{index}", *found)
        for name, count in Counter(tool.rpartition(":")[2] for tool in self.tools).items():
            if count > 1:
                yield Problem("tools", f"{count} tools are called {name!r}", "give them different names")


class PythonConfig(_ProcessesConfig):
    """A class of the user's."""

    environment_class: FunctionRef = Field(
        alias="class", description="module:Class or file.py:Class with the methods start and step."
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the class.")

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """A class that does not exist, as far as that shows without running the user's code."""
        if (found := missing_function(self.environment_class)) is not None:
            yield Problem("class", *found)
