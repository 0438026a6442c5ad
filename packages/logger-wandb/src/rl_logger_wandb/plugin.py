"""Components of this package: the ``wandb`` logger."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="wandb",
            factory="rl_logger_wandb.logger:WandbLogger",
            config="rl_logger_wandb.config:WandbConfig",
            summary="metrics, samples and pictures for Weights & Biases",
            imports=("wandb",),
        )
    ]
