"""Components of this package, as references; imported at discovery, so it stays light."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_rewards() -> list[Component]:
    """The score of a trained reward model."""
    return [
        Component(
            kind="reward",
            name="model",
            factory="rl_reward_model.reward:ModelReward",
            config="rl_reward_model.config:ModelRewardConfig",
            summary="The score of a reward model (sequence classification with one label), served by its own workers.",
            imports=("torch", "transformers"),
        )
    ]
