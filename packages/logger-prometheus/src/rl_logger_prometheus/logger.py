"""Shows the newest metrics to Prometheus, which asks for them."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Gauge
from rl_core.contracts.logger import RunInfo
from rl_core.errors import ConfigError
from rl_core.io.files import write_atomic

from rl_logger_prometheus.page import Page

if TYPE_CHECKING:
    from rl_logger_prometheus.config import PrometheusConfig

logger = logging.getLogger("rl")

TARGETS = "prometheus.json"
"""In the run directory: the endpoint, in the form of Prometheus's ``file_sd_configs``."""
_GPU = re.compile(r"gpu/(\d+)/(.+)")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


class PrometheusLogger:
    """A gauge for every metric, with the run and the stage as labels: ``train/loss`` is ``rl_train_loss``."""

    def __init__(self, config: PrometheusConfig) -> None:
        """Listens from now on.

        Raises:
            ConfigError: the port is taken, or the address is none of this machine.
        """
        self.config = config
        self._registry = CollectorRegistry()
        self._page = Page(self._registry, for_people=config.page)
        self._gauges: dict[str, Gauge] = {}
        self._shown: dict[str, set[tuple[str, ...]]] = {}
        self._info: RunInfo | None = None
        try:
            self._server: Any = make_server(config.host, config.port, self._page, _Server, _Silent)
        except OSError as error:
            raise ConfigError(
                f"logger prometheus: cannot listen on {config.host}:{config.port}: {error.strerror or error}\n"
                "    choose another port, or 0 for any free one: loggers: [{name: prometheus, port: 0}]"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="prometheus", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """``host:port`` of the endpoint."""
        return f"{self.config.host}:{self._server.server_port}"

    def start(self, info: RunInfo) -> None:
        if self._info is None:
            logger.info("metrics for Prometheus: http://%s/metrics", self.address)
            targets = [{"targets": [self.address], "labels": {"job": "rl"}}]
            write_atomic(Path(info.directory) / TARGETS, json.dumps(targets) + "\n")
        self._info = info
        self._page.begin(f"{info.run} {info.stage}", info.directory)
        self._set("rl_total_steps", {"run": info.run, "stage": info.stage}, info.total_steps)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._info is None:
            return
        labels = {"run": self._info.run, "stage": self._info.stage}
        self._set("rl_step", labels, step)
        for name, value in metrics.items():
            self._set(_name(f"rl_{name}"), labels, value)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """On the page for people: Prometheus holds numbers only."""
        self._page.show(step, rows)

    def log_machines(self, step: int, machines: Mapping[str, Mapping[str, float]]) -> None:
        """``rl_machine_cpu_percent{machine=…}``, ``rl_machine_gpu_utilization_percent{machine=…, gpu=…}``, …"""
        if self._info is None:
            return
        seen: dict[str, set[tuple[str, ...]]] = {}
        for host, measured in machines.items():
            for name, value in measured.items():
                labels = {"run": self._info.run, "machine": host}
                if gpu := _GPU.fullmatch(name):
                    name, labels = f"gpu_{gpu[2]}", labels | {"gpu": gpu[1]}
                whole = _name(f"rl_machine_{name}")
                self._set(whole, labels, value)
                seen.setdefault(whole, set()).add(tuple(labels.values()))
        for whole, before in self._shown.items():
            for gone in before - seen.get(whole, set()):
                self._gauges[whole].remove(*gone)  # a machine that is gone shows no old numbers
        self._shown = seen

    def close(self) -> None:
        """Prometheus finds nothing there any more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()
        if self._info is not None:
            (Path(self._info.directory) / TARGETS).unlink(missing_ok=True)
            self._info = None

    def _set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, name, list(labels), registry=self._registry)
        self._gauges[name].labels(*labels.values()).set(value)


def _name(text: str) -> str:
    """Letters, digits and underscores, as Prometheus has it."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)
