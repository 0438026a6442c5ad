"""Components of this package: the ``console`` logger."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="console",
            factory="rl_logger_console.console:ConsoleLogger",
            config="rl_logger_console.config:ConsoleConfig",
            summary="Live metrics in the terminal",
        )
    ]
