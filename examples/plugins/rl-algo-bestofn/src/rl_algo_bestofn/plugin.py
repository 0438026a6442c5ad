"""What this package offers. Every ``rl`` command imports this module, so it imports nothing heavy."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_algorithms() -> list[Component]:
    return [
        Component(
            kind="algorithm",
            name="bestofn",
            factory="rl_algo_bestofn.algorithm:BestOfN",
            config="rl_algo_bestofn.config:BestOfNConfig",
            summary="Supervised training on the best of n completions",
            needs=("data", "generator", "rewards"),
            imports=("torch",),
        )
    ]


@hookimpl
def register_rewards() -> list[Component]:
    return [
        Component(
            kind="reward",
            name="repeat",
            factory="rl_algo_bestofn.reward:Repeat",
            config="rl_algo_bestofn.config:RepeatConfig",
            summary="How much of the completion is the answer's character, over and over",
        )
    ]


@hookimpl
def register_environments() -> list[Component]:
    return [
        Component(
            kind="environment",
            name="guess",
            factory="rl_algo_bestofn.environment:Guess",
            config="rl_algo_bestofn.config:GuessConfig",
            summary="Guess a number; the answers are higher and lower",
        )
    ]
