from __future__ import annotations

from collections.abc import Callable
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
def tools() -> Callable[..., ToolEnvironment]:
    """``tools("search", …, **fields)``: the environment with functions of that file."""

    def build(*names: str, **fields: Any) -> ToolEnvironment:
        return ToolEnvironment(ToolsConfig(name="tools", tools=tuple(f"{MY_TOOLS}:{name}" for name in names), **fields))

    return build
