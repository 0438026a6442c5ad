"""One collector measures every machine of the cluster for all loggers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rl_core.training.logger_group import LoggerGroup
from rl_system_metrics import plugin
from rl_system_metrics.collector import Collector


class Keeps:
    def __init__(self):
        self.calls = []
        self.came = threading.Semaphore(0)

    def log_machines(self, step, machines):
        self.calls.append((step, machines))
        self.came.release()


def stage(every):
    return SimpleNamespace(run=SimpleNamespace(measure_machines_every=every))


def test_nothing_is_measured_where_no_logger_shows_it_or_it_is_off():
    assert plugin.observe_stage(stage(15.0), LoggerGroup([("plain", object())])) is None
    assert plugin.observe_stage(stage(0.0), LoggerGroup([("shows", Keeps())])) is None


@pytest.mark.slow
def test_measurements_come_at_the_interval_until_the_stage_ends(cluster):
    kept = Keeps()
    collector = plugin.observe_stage(stage(0.05), LoggerGroup([("shows", kept)]))
    assert kept.came.acquire(timeout=60)
    collector.step_begins(4)
    while kept.calls[-1][0] != 4:
        assert kept.came.acquire(timeout=60)
    collector.close()
    count = len(kept.calls)
    time.sleep(0.3)
    assert len(kept.calls) == count
    _, machines = kept.calls[-1]
    assert list(machines) == [socket.gethostname()]
    assert "network_sent_bytes_per_s" in machines[socket.gethostname()]


def test_a_failure_is_said_once_and_training_goes_on(monkeypatch, caplog):
    def fails():
        raise RuntimeError("no cluster")

    monkeypatch.setattr("rl_system_metrics.collector.Machines", fails)
    collector = Collector(LoggerGroup([("shows", Keeps())]), every_s=0.01)
    time.sleep(0.3)
    collector.close()
    assert caplog.messages == ["machines cannot be measured: RuntimeError: no cluster"]


@pytest.mark.slow
def test_every_machine_is_measured_and_one_that_is_gone_is_left_out():
    """Both are simulated on this one, so they have one name; the second is told apart by its id in Ray."""
    script = Path(__file__).with_name("two_machines.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    both, left, measured = json.loads(done.stdout.splitlines()[-1])
    host = socket.gethostname()
    assert both[0] == host
    assert both[1].startswith(f"{host}-")
    assert len(both) == 2
    assert left == [host]
    assert all(one["memory_used_bytes"] > 0 for one in measured.values())
