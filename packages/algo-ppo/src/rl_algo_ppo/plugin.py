"""Components of this package: the ``ppo`` algorithm."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_algorithms() -> list[Component]:
    return [
        Component(
            kind="algorithm",
            name="ppo",
            factory="rl_algo_ppo.ppo:Ppo",
            config="rl_algo_ppo.config:PpoConfig",
            summary="Proximal policy optimization with a value model and generalized advantage estimation.",
            needs=("data", "generator", "rewards"),
            imports=("torch",),
        )
    ]
