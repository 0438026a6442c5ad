"""What this package adds: the ``sft`` algorithm."""

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
        )
    ]
