"""Components of this package: the algorithms ``sft`` and ``rm``."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_algorithms() -> list[Component]:
    return [
        Component(
            kind="algorithm",
            name="sft",
            factory="rl_algo_sft_rm.sft:Sft",
            config="rl_algo_sft_rm.config:SftConfig",
            summary="Supervised fine-tuning on prompt/completion pairs or conversations.",
            needs=("data",),
            imports=("torch",),
        ),
        Component(
            kind="algorithm",
            name="rm",
            factory="rl_algo_sft_rm.rm:RewardModel",
            config="rl_algo_sft_rm.config:RmConfig",
            summary="Reward model (Bradley-Terry) on pairs of a chosen and a rejected completion.",
            needs=("data",),
            imports=("torch",),
        ),
    ]
