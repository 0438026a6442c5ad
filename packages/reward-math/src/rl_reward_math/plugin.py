"""Components of this package, as references; imported at discovery, so it stays light."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_rewards() -> list[Component]:
    """The reward for mathematical answers."""
    return [
        Component(
            kind="reward",
            name="math",
            factory="rl_reward_math.reward:Math",
            config="rl_reward_math.config:MathConfig",
            summary="1 where the completion's mathematical answer equals the row's, checked by math-verify.",
            imports=("math_verify",),
        )
    ]
