"""What rl-core itself offers: the logger every installation has."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="jsonl",
            factory="rl_core.loggers.jsonl:JsonlLogger",
            config="rl_core.loggers.config:JsonlConfig",
            summary="metrics.jsonl and samples.jsonl in the run directory",
        ),
    ]
