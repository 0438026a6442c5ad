"""Components of this package, as references; imported at discovery, so it stays light."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_environments() -> list[Component]:
    """Tools, and a class of the user's."""
    return [
        Component(
            kind="environment",
            name="tools",
            factory="rl_env_tools.environment:ToolEnvironment",
            config="rl_env_tools.config:ToolsConfig",
            summary="The model calls your Python functions and reads what they return, until it answers.",
        ),
        Component(
            kind="environment",
            name="python",
            factory="rl_env_tools.python:load_environment",
            config="rl_env_tools.config:PythonConfig",
            summary="Your own Python class with start and step, such as a game.",
        ),
    ]
