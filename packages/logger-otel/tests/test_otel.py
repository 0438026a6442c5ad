"""What a collector receives, decoded, and what happens where there is none."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from rl_core.contracts.logger import RunInfo, Span
from rl_core.training.logger_group import LoggerGroup
from rl_core.training.logger_queue import LoggerQueue
from rl_logger_otel import plugin
from rl_logger_otel.config import OtelConfig
from rl_logger_otel.logger import OtelLogger
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.suites import LoggerConformance

spec = importlib.util.spec_from_file_location("otel_collector", Path(__file__).with_name("collector.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
Collector, attributes = module.Collector, module.attributes

SECRET = "t0p-s3cret-token"


class TestPackage(PluginConformance):
    package = "rl-logger-otel"


class TestLogger(LoggerConformance):
    component = "otel"
    fields: ClassVar = {}

    @pytest.fixture(autouse=True)
    def collector(self):
        one = Collector()
        self.fields = {"endpoint": one.address}
        yield
        one.close()


@pytest.fixture
def collector():
    one = Collector()
    yield one
    one.close()


def build(address, **fields):
    return OtelLogger(OtelConfig(name="otel", endpoint=address, **fields))


def info(folder, *, stage="sft", config=None):
    return RunInfo(
        "demo", str(folder), stage, ("sft", "grpo"), 10, 1, config or {"hub": {"token": SECRET}, "steps": 10}
    )


def test_metrics_arrive_as_gauges_with_their_stage(collector, tmp_path):
    logger = build(collector.address, every=0.001)
    logger.start(info(tmp_path))
    time.sleep(0.01)
    logger.log(3, {"train/loss": 0.5})
    logger.log_machines(3, {"host-a": {"cpu_percent": 12.0, "gpu/0/power_watts": 300.0}})
    logger.ended("finished")
    logger.close()
    assert ("rl.train.loss", 0.5, {"rl.stage": "sft"}) in collector.metrics
    assert ("rl.step", 3.0, {"rl.stage": "sft"}) in collector.metrics
    assert ("rl.machine.cpu_percent", 12.0, {"host.name": "host-a"}) in collector.metrics
    assert ("rl.machine.gpu_power_watts", 300.0, {"host.name": "host-a", "gpu": "0"}) in collector.metrics
    assert ("rl.run_ended", 1.0, {"rl.status": "finished"}) in collector.metrics
    assert {(one["service.name"], one["rl.run"]) for one in collector.resources} == {("rl", "demo")}


def test_a_step_is_a_trace_with_its_phases_and_samples(collector, tmp_path):
    logger = build(collector.address)
    logger.start(info(tmp_path))
    logger.log_samples(4, [{"prompt": "1+1=", "completion": "2", "reward": 1.0, "answer": None}])
    spans = [
        Span("step", 100.0, 108.0, None),
        Span("sampling", 100.5, 103.0, 0),
        Span("algorithm", 103.0, 107.0, 0),
        Span("train", 104.0, 106.0, 2),
    ]
    logger.log_trace(4, spans)
    logger.close()
    arrived = {span.name: span for span in collector.spans}
    step = arrived["step"]
    assert {span.trace_id for name, span in arrived.items() if name != "stage"} == {step.trace_id}
    parents = {name: arrived[name].parent_span_id for name in ("sampling", "algorithm", "train")}
    assert parents == {"sampling": step.span_id, "algorithm": step.span_id, "train": arrived["algorithm"].span_id}
    assert step.parent_span_id == b""
    assert (step.start_time_unix_nano, step.end_time_unix_nano) == (100_000_000_000, 108_000_000_000)
    assert attributes(step) == {"rl.stage": "sft", "rl.step": 4}
    (sample,) = step.events
    assert attributes(sample) == {"step": 4, "prompt": "1+1=", "completion": "2", "reward": 1.0}


def test_a_stage_begins_with_its_config_and_what_changed_in_it(collector, tmp_path):
    for steps in (10, 20):
        logger = build(collector.address)
        logger.start(info(tmp_path, config={"run": {"steps": steps}}))
        logger.close()
    first, second = (attributes(span) for span in collector.spans)
    assert first == {"rl.stage": "sft", "rl.config.run.steps": 10}
    assert second == {"rl.stage": "sft", "rl.config.run.steps": 20, "rl.config_changed.run.steps": "10 → 20"}


def test_secrets_do_not_leave_the_machine(collector, tmp_path):
    logger = build(collector.address)
    logger.start(info(tmp_path))
    logger.log(1, {"train/loss": 0.5})
    logger.log_samples(1, [{"completion": "curl https://user:pa55word@host/"}])
    logger.log_trace(1, [Span("step", 1.0, 2.0, None)])
    logger.close()
    sent = b"".join(collector.raw)
    assert b"curl https://" in sent
    assert b"rl.config.steps" in sent
    assert SECRET.encode() not in sent
    assert b"pa55word" not in sent
    assert SECRET not in (tmp_path / "trackers" / "otel.json").read_text()


def queued(address, folder, **fields):
    one = build(address, every=0.001, request_timeout=0.3, close_timeout=2.0, **fields)
    loggers = LoggerGroup([("otel", LoggerQueue("otel", one, first_retry_s=0.05))])
    loggers.start(info(folder))
    time.sleep(0.05)
    return loggers


def test_a_collector_that_comes_up_later_receives_every_step(tmp_path, caplog):
    port = Collector()
    port.close()
    loggers = queued(port.address, tmp_path)
    began = time.monotonic()
    for step in range(1, 6):
        loggers.log(step, {"train/loss": float(step)})
        loggers.log_trace(step, [Span("step", float(step), step + 1.0, None)])
    assert time.monotonic() - began < 1
    while not caplog.messages:
        assert time.monotonic() - began < 30
        time.sleep(0.01)
    late = Collector(port.port)
    loggers.close()
    late.close()
    assert [attributes(span)["rl.step"] for span in late.spans if span.name == "step"] == [1, 2, 3, 4, 5]
    assert late.metrics[-1][0].startswith("rl.")
    assert [m for m in caplog.messages if "otel" in m] == [
        "logger 'otel' failed and is tried again: ConnectionError: the OpenTelemetry collector took no spans; "
        "training goes on"
    ]


def test_a_collector_that_dies_and_one_that_refuses_hold_nothing_up(tmp_path):
    one = Collector()
    loggers = queued(one.address, tmp_path)
    loggers.log(1, {"train/loss": 0.5})
    while not one.metrics:
        time.sleep(0.01)
    one.status = 400
    loggers.log(2, {"train/loss": 0.5})
    one.close()
    began = time.monotonic()
    for step in range(3, 100):
        loggers.log(step, {"train/loss": 0.5})
    assert time.monotonic() - began < 1
    loggers.close()
    assert time.monotonic() - began < 10


def test_a_collector_that_never_answers_holds_nothing_up(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loggers = queued(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        began = time.monotonic()
        for step in range(1, 100):
            loggers.log(step, {"train/loss": 0.5})
        assert time.monotonic() - began < 1
        loggers.close()
        assert time.monotonic() - began < 10
    assert sum("failed and is tried again" in message for message in caplog.messages) == 1
    assert "calls are lost" in caplog.messages[-1]


def test_phases_are_measured_where_a_logger_shows_them(collector):
    assert plugin.observe_stage(LoggerGroup([("plain", object())])) is None
    assert plugin.observe_stage(LoggerGroup([("otel", build(collector.address))])) is not None


def test_the_plugin_is_light():
    code = "import sys, rl_logger_otel.plugin, rl_logger_otel.config\nprint('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
