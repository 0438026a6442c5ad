"""What Prometheus and people find at the endpoint."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rl_core.contracts.logger import RunInfo
from rl_core.errors import ConfigError
from rl_logger_prometheus.config import PrometheusConfig
from rl_logger_prometheus.dashboard import dashboard
from rl_logger_prometheus.logger import PrometheusLogger
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.suites import LoggerConformance
from rl_secrets.redaction import forget_secrets, remember_secrets


class TestPackage(PluginConformance):
    package = "rl-logger-prometheus"
    settings: ClassVar = {"prometheus": {"port": 0}}


class TestLogger(LoggerConformance):
    component = "prometheus"
    fields: ClassVar = {"port": 0}


@pytest.fixture
def logger(tmp_path):
    one = PrometheusLogger(PrometheusConfig(name="prometheus", port=0))
    one.start(RunInfo("demo", str(tmp_path), "sft", ("sft", "grpo"), 10, 1, {"hub": {"token": "t0p-s3cret-token"}}))
    yield one
    one.close()


def get(logger, path):
    with urllib.request.urlopen(f"http://{logger.address}{path}", timeout=10) as answer:
        return answer.read()


def scraped(logger):
    found = {}
    for family in text_string_to_metric_families(get(logger, "/metrics").decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_every_metric_is_a_gauge_with_run_and_stage(logger, tmp_path):
    logger.log(3, {"train/loss": 0.5, "eval/math-500/accuracy": 0.25})
    logger.start(RunInfo("demo", str(tmp_path), "grpo", ("sft", "grpo"), 4, 1, {}))
    logger.log(1, {"train/loss": 0.125})
    sft, grpo = (("run", "demo"), ("stage", "sft")), (("run", "demo"), ("stage", "grpo"))
    assert scraped(logger) == {
        ("rl_step", sft): 3.0,
        ("rl_step", grpo): 1.0,
        ("rl_total_steps", sft): 10.0,
        ("rl_total_steps", grpo): 4.0,
        ("rl_train_loss", sft): 0.5,
        ("rl_train_loss", grpo): 0.125,
        ("rl_eval_math_500_accuracy", sft): 0.25,
    }


def test_machines_and_gpus_are_labels_and_those_that_are_gone_are_gone(logger):
    logger.log_machines(1, {"a": {"cpu_percent": 10.0, "gpu/1/power_watts": 300.0}, "b": {"cpu_percent": 20.0}})
    cpu = {labels: v for (name, labels), v in scraped(logger).items() if name == "rl_machine_cpu_percent"}
    assert cpu == {(("machine", "a"), ("run", "demo")): 10.0, (("machine", "b"), ("run", "demo")): 20.0}
    assert scraped(logger)["rl_machine_gpu_power_watts", (("gpu", "1"), ("machine", "a"), ("run", "demo"))] == 300.0
    logger.log_machines(2, {"b": {"cpu_percent": 30.0}})
    machines = {key: v for key, v in scraped(logger).items() if key[0].startswith("rl_machine_")}
    assert machines == {("rl_machine_cpu_percent", (("machine", "b"), ("run", "demo"))): 30.0}


def test_people_see_samples_and_pictures_and_nothing_else_of_the_run_directory(logger, tmp_path):
    (tmp_path / "plot.png").write_bytes(b"\x89PNG picture")
    (tmp_path / "secrets.json").write_text("{}")
    logger.log_samples(7, [{"prompt": "<script>alert(1)</script>", "reward": 1.0}])
    page = get(logger, "/").decode()
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td><td>1.0</td>" in page
    assert "<img src='plots/plot.png'>" in page
    assert get(logger, "/plots/plot.png") == b"\x89PNG picture"
    for path in ("/plots/secrets.json", "/plots/../secrets.json", "/plots/%2e%2e/secrets.json", "/secrets.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(logger, path)


def test_the_page_for_people_can_be_switched_off():
    one = PrometheusLogger(PrometheusConfig(name="prometheus", port=0, page=False))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(one, "/")
    assert get(one, "/metrics") == b""
    one.close()


def test_secrets_are_shown_nowhere(logger):
    remember_secrets(["correct-horse"])
    logger.log(1, {"train/loss": 0.5})
    logger.log_samples(1, [{"completion": "curl https://user:pa55word@host/"}])
    seen = get(logger, "/metrics") + get(logger, "/")
    forget_secrets()
    assert b"t0p-s3cret-token" not in seen
    assert b"pa55word" not in seen
    assert b"curl https://" in seen


def test_a_port_that_is_taken_ends_the_run_before_it_trains():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            PrometheusLogger(PrometheusConfig(name="prometheus", port=port))


def test_it_listens_on_loopback_unless_told_otherwise(logger):
    assert logger.address.startswith("127.0.0.1:")
    port = int(logger.address.rpartition(":")[2])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [one for one in listening if int(one.partition(":")[2], 16) == port] == [f"0100007F:{port:04X}"]


def test_prometheus_finds_the_endpoint_by_a_file_while_the_run_lasts(logger, tmp_path):
    (target,) = json.loads((tmp_path / "prometheus.json").read_text())
    assert target == {"targets": [logger.address], "labels": {"job": "rl"}}
    logger.close()
    assert not (tmp_path / "prometheus.json").exists()


def test_the_dashboard_asks_for_metrics_that_are_logged(logger):
    printed = subprocess.run(
        [sys.executable, "-m", "rl_logger_prometheus.dashboard"], capture_output=True, text=True, check=True
    ).stdout
    board = json.loads(printed)
    assert board == dashboard()
    asked = {re.match(r"\w+", target["expr"])[0] for panel in board["panels"] for target in panel["targets"]}
    docs = Path(__file__).parents[3] / "docs" / "metrics.md"
    known = {"rl_" + re.sub(r"\W", "_", name) for name in re.findall(r"`([a-z]+/[a-z0-9_]+)`", docs.read_text())}
    logger.log(1, {})
    names = [
        *("cpu_percent", "memory_percent", "gpu/0/utilization_percent", "gpu/0/memory_percent"),
        *("network_received_bytes_per_s", "network_sent_bytes_per_s"),
        *("disk_read_bytes_per_s", "disk_written_bytes_per_s"),
    ]
    logger.log_machines(1, {"a": dict.fromkeys(names, 1.0)})
    assert asked <= known | {name for name, _ in scraped(logger)}
    assert len(board["panels"]) == len({str(panel["gridPos"]) for panel in board["panels"]})


def test_the_plugin_is_light():
    modules = "rl_logger_prometheus.plugin, rl_logger_prometheus.config"
    code = f"import sys, {modules}\nprint('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
