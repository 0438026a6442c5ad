"""Components of this package: the ``prometheus`` logger."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_loggers() -> list[Component]:
    return [
        Component(
            kind="logger",
            name="prometheus",
            factory="rl_logger_prometheus.logger:PrometheusLogger",
            config="rl_logger_prometheus.config:PrometheusConfig",
            summary="a scrape endpoint for Prometheus, and a dashboard for Grafana",
            imports=("prometheus_client",),
        )
    ]
