"""Components of this package: the ``plot`` logger."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="plot",
            factory="rl_logger_plot.logger:PlotLogger",
            config="rl_logger_plot.config:PlotConfig",
            summary="A picture of loss, reward and held-out accuracy in the run directory.",
            imports=("matplotlib",),
        )
    ]
