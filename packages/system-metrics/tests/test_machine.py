"""Measurements of one machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rl_system_metrics.machine import Machine


def test_the_first_measurement_has_no_rates_and_the_second_has():
    machine = Machine()
    first = machine.measure()
    time.sleep(0.05)
    second = machine.measure()
    assert {"cpu_percent", "memory_percent", "memory_used_bytes", "disk_percent"} <= first.keys()
    assert not [name for name in first if name.endswith("_per_s")]
    assert {"network_received_bytes_per_s", "network_sent_bytes_per_s"} <= second.keys()
    assert all(0 <= second[name] <= 100 for name in second if name.endswith("_percent"))


def test_the_memory_is_what_the_kernel_says():
    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(said[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    measured = Machine().measure()["memory_percent"]
    assert measured == pytest.approx(100 * (total - available) / total, abs=5)


def test_the_disk_is_that_of_the_path(tmp_path):
    stat = os.statvfs(tmp_path)
    used = 100 * (1 - stat.f_bavail / (stat.f_blocks - stat.f_bfree + stat.f_bavail))
    assert Machine(str(tmp_path)).measure()["disk_percent"] == pytest.approx(used, abs=1)


class Error(Exception):
    pass


def nvml(**functions):
    found = {
        "NVMLError": Error,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=10 + gpu),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=20, total=80),
        "nvmlDeviceGetPowerUsage": lambda gpu: 350_000,
        "nvmlDeviceGetTemperature": lambda gpu, sensor: 55,
    }
    return SimpleNamespace(**{**found, **functions})


def gpus(monkeypatch, library):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return {name: value for name, value in Machine().measure().items() if name.startswith("gpu/")}


def test_every_gpu_is_measured(monkeypatch):
    assert gpus(monkeypatch, nvml()) == {
        f"gpu/{index}/{name}": value
        for index in (0, 1)
        for name, value in {
            "utilization_percent": 10.0 + index,
            "memory_used_bytes": 20.0,
            "memory_percent": 25.0,
            "power_watts": 350.0,
            "temperature_celsius": 55.0,
        }.items()
    }


def test_a_sensor_that_a_gpu_lacks_is_left_out(monkeypatch):
    def missing(gpu):
        raise Error

    found = gpus(monkeypatch, nvml(nvmlDeviceGetPowerUsage=missing))
    assert "gpu/0/power_watts" not in found
    assert found["gpu/0/temperature_celsius"] == 55.0


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    def missing():
        raise Error

    assert gpus(monkeypatch, nvml(nvmlInit=missing)) == {}
