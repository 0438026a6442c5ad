"""The rollout source of this package, and what it finds in configs; imported at discovery, so it stays light."""

from __future__ import annotations

from typing import Any

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_rollouts() -> list[Component]:
    """The source ``standard``."""
    return [
        Component(
            kind="rollout",
            name="standard",
            factory="rl_rollout.source:StandardRollouts",
            config="rl_rollout.config:StandardConfig",
            summary="Whole batches of completions or conversations, scored by rewards; sampled ahead where allowed.",
        )
    ]


@hookimpl
def validate_config(config: Any) -> list[Any]:
    """Completions, and the turns of a conversation, fit the model's context."""
    from rl_rollout.turn_limits import completion_limit_problems, turn_limit_problems

    return [*turn_limit_problems(config), *completion_limit_problems(config)]
