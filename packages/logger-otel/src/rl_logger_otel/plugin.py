"""What this package adds: the ``otel`` logger, and the times of phases for loggers that show traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_core.component import Component
from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_tracker_common.tracing import Trace


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="otel",
            factory="rl_logger_otel.logger:OtelLogger",
            config="rl_logger_otel.config:OtelConfig",
            summary="metrics, and a trace of every step, for OpenTelemetry",
            imports=(
                "opentelemetry.sdk",
                "opentelemetry.exporter.otlp.proto.http",
            ),
        )
    ]


@hookimpl
def observe_stage(loggers: Any) -> Trace | None:
    from rl_core.contracts.logger import LogsTraces
    from rl_tracker_common.tracing import Trace

    return Trace(loggers) if loggers.wants(LogsTraces) else None
