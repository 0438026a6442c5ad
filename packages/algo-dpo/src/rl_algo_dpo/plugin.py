"""Components of this package: the ``dpo`` algorithm."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_algorithms() -> list[Component]:
    return [
        Component(
            kind="algorithm",
            name="dpo",
            factory="rl_algo_dpo.dpo:Dpo",
            config="rl_algo_dpo.config:DpoConfig",
            summary="Learning from preferences: DPO, cDPO, robust DPO, IPO, hinge, SimPO, ORPO, KTO.",
            needs=("data",),
            imports=("torch",),
        )
    ]
