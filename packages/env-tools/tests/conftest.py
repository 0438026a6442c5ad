from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rl_env_tools.config import ToolsConfig
from rl_env_tools.environment import ToolEnvironment

MY_TOOLS = str(Path(__file__).with_name("my_tools.py"))


@pytest.fixture
def my_tools() -> str:
    """The path of a file with tools."""
    return MY_TOOLS


@pytest.fixture
def tools() -> Iterator[Callable[..., ToolEnvironment]]:
    """``tools("search", …, **fields)``: the environment with functions of that file."""
    built: list[ToolEnvironment] = []

    def build(*names: str, **fields: Any) -> ToolEnvironment:
        references = tuple(f"{MY_TOOLS}:{name}" for name in names)
        built.append(ToolEnvironment(ToolsConfig(name="tools", tools=references, **fields)))
        return built[-1]

    yield build
    for environment in built:
        environment.close()
