"""Sends metrics and a trace of every step to an OpenTelemetry collector.

The exporters are called here, in the logger's own thread, and not by the SDK's background threads: what fails is tried
again and counted as with every logger.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import set_span_in_context
from rl_core.contracts.logger import RunInfo, Span
from rl_tracker_common.config import flat_config
from rl_tracker_common.memory import TrackerMemory
from rl_tracker_common.samples import sample_table

if TYPE_CHECKING:
    from rl_logger_otel.config import OtelConfig

_NS = 1_000_000_000
_GPU = re.compile(r"gpu/(\d+)/(.+)")
_DEFAULT = "http://localhost:4318"


class OtelLogger:
    """A gauge for every metric (``train/loss`` is ``rl.train.loss``) and a trace for every step, phases as its spans.

    A stage begins with a span ``stage`` that has the config, and what changed in it, as attributes.
    """

    def __init__(self, config: OtelConfig) -> None:
        self.config = config
        self.close_timeout_s = config.close_timeout
        at = config.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULT
        at, timeout = at.rstrip("/"), config.request_timeout
        self._send_metrics = OTLPMetricExporter(endpoint=f"{at}/v1/metrics", timeout=timeout)
        self._send_spans = OTLPSpanExporter(endpoint=f"{at}/v1/traces", timeout=timeout)
        # They log every failure; the run says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._reader = InMemoryMetricReader()
        self._ended = InMemorySpanExporter()
        self._meters: MeterProvider | None = None
        self._tracers: TracerProvider | None = None
        self._gauges: dict[str, Any] = {}
        self._stage: dict[str, str] = {}
        self._samples: tuple[int, list[dict[str, Any]]] = (0, [])
        self._waiting: Any = None  # metrics that were collected and not sent
        self._exported = time.monotonic()

    def start(self, info: RunInfo) -> None:
        if self._meters is None or self._tracers is None:
            about = {"service.name": self.config.service, "service.instance.id": info.run, "rl.run": info.run}
            resource = Resource.create(about)
            self._meters = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
            self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._tracers.add_span_processor(SimpleSpanProcessor(self._ended))
        self._stage = {"rl.stage": info.stage}
        config, memory = flat_config(info.config), TrackerMemory(info.directory, "otel")
        changes = {f"rl.config_changed.{one.name}": str(one) for one in memory.changes(info.stage, config)}
        values = {f"rl.config.{name}": value for name, value in config.items() if value is not None}
        span = self._tracers.get_tracer("rl").start_span("stage", attributes={**self._stage, **values, **changes})
        span.end()
        memory.remember(info.stage, id=info.run, config=config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._set("rl.step", step, self._stage)
        for name, value in metrics.items():
            self._set(f"rl.{name}", value, self._stage)
        self._export_when_due()

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Kept until the step's trace comes."""
        if self.config.samples:
            columns, table = sample_table(step, rows)
            events = [{n: v for n, v in zip(columns, row, strict=True) if v is not None} for row in table]
            self._samples = step, events

    def log_machines(self, step: int, machines: Mapping[str, Mapping[str, float]]) -> None:
        """``rl.machine.cpu_percent`` with ``host.name``; GPUs with ``gpu`` besides."""
        for host, measured in machines.items():
            for name, value in measured.items():
                labels = {"host.name": host}
                if gpu := _GPU.fullmatch(name):
                    name, labels = f"gpu_{gpu[2]}", labels | {"gpu": gpu[1]}
                self._set(f"rl.machine.{name}", value, labels)
        self._export_when_due()

    def log_trace(self, step: int, spans: Sequence[Span]) -> None:
        """The step as a trace, its samples as events of it; sent later, since a call that fails is repeated."""
        if self._tracers is None:
            return
        tracer = self._tracers.get_tracer("rl")
        begun: list[Any] = []
        attributes: dict[str, Any] = {**self._stage, "rl.step": step}
        for span in spans:
            around = None if span.parent is None else set_span_in_context(begun[span.parent])
            start = int(span.start * _NS)
            begun.append(tracer.start_span(span.name, around, attributes=attributes, start_time=start))
        if begun and self._samples[0] == step:
            for row in self._samples[1]:
                begun[0].add_event("sample", row, timestamp=int(spans[0].end * _NS))
        self._samples = (0, [])
        for open_, span in zip(begun, spans, strict=True):
            open_.end(int(span.end * _NS))

    def ended(self, status: str) -> None:
        """As a gauge: 1 for the status of the run."""
        self._set("rl.run_ended", 1, {"rl.status": status})

    def close(self) -> None:
        """Raises ConnectionError where the collector does not answer."""
        if self._meters is not None:
            self._export()
            self._meters.shutdown()
            self._meters = None
        if self._tracers is not None:
            self._tracers.shutdown()
            self._tracers = None

    def _set(self, name: str, value: float, attributes: Mapping[str, str]) -> None:
        if self._meters is None:
            return
        name = re.sub(r"[^A-Za-z0-9_.\-]", "_", name.replace("/", "."))[:255]
        if name not in self._gauges:
            self._gauges[name] = self._meters.get_meter("rl").create_gauge(name)
        self._gauges[name].set(float(value), dict(attributes))

    def _export_when_due(self) -> None:
        spans = len(self._ended.get_finished_spans())
        if time.monotonic() - self._exported >= self.config.every or spans >= self.config.most_spans:
            self._export()

    def _export(self) -> None:
        """Raises ConnectionError where the collector does not answer; what was not sent is sent the next time."""
        self._exported = time.monotonic()
        spans = self._ended.get_finished_spans()
        if spans:
            if self._send_spans.export(spans) is not SpanExportResult.SUCCESS:
                raise ConnectionError("the OpenTelemetry collector took no spans")
            self._ended.clear()
        metrics = self._reader.get_metrics_data() or self._waiting
        if metrics is not None:
            self._waiting = metrics
            if self._send_metrics.export(metrics) is not MetricExportResult.SUCCESS:
                raise ConnectionError("the OpenTelemetry collector took no metrics")
            self._waiting = None
