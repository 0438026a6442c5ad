"""Components of this package: the ``grpo`` algorithm."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_algorithms() -> list[Component]:
    return [
        Component(
            kind="algorithm",
            name="grpo",
            factory="rl_algo_grpo.grpo:Grpo",
            config="rl_algo_grpo.config:GrpoConfig",
            summary="GRPO, DAPO, Dr. GRPO, GSPO, CISPO, RLOO and REINFORCE++ on sampled completions and their rewards.",
            needs=("data", "generator", "rewards"),
            imports=("torch",),
        )
    ]
