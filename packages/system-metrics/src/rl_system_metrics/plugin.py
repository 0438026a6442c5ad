"""What this package adds: measurements of every machine, for loggers that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_system_metrics.collector import Collector


@hookimpl
def observe_stage(stage: Any, loggers: Any) -> Collector | None:
    from rl_core.contracts.logger import LogsMachines

    every_s = stage.run.measure_machines_every
    if not every_s or not loggers.wants(LogsMachines):
        return None
    from rl_system_metrics.collector import Collector

    return Collector(loggers, every_s=every_s)
