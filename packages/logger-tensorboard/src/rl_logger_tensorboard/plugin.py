"""Components of this package: the ``tensorboard`` logger."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="tensorboard",
            factory="rl_logger_tensorboard.logger:TensorboardLogger",
            config="rl_logger_tensorboard.config:TensorboardConfig",
            summary="Metrics and samples for TensorBoard, in the run directory.",
            imports=("tensorboard",),
        )
    ]
