"""One machine, measured: psutil and, where there is an NVIDIA driver, NVML."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil


class Machine:
    """Measures the machine that it is on.

    Rates are over the time since the last call; the first call has none.
    """

    def __init__(self, disk: str = "/") -> None:
        """``disk``: a path on the disk whose room is measured."""
        self._disk = disk
        self._counted: tuple[float, dict[str, float]] | None = None
        self._gpus = _gpus()
        psutil.cpu_percent()  # from here on it is counted

    @property
    def name(self) -> str:
        """The host name."""
        return socket.gethostname()

    def measure(self) -> dict[str, float]:
        """Metric → value: ``…_percent`` from 0 to 100, ``…_bytes``, ``…_bytes_per_s``; GPUs as ``gpu/0/…``."""
        memory = psutil.virtual_memory()
        found = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": memory.percent,
            "memory_used_bytes": float(memory.used),
            "disk_percent": psutil.disk_usage(self._disk).percent,
        }
        found |= self._rates()
        for index, (nvml, handle) in enumerate(self._gpus):
            found |= {f"gpu/{index}/{name}": value for name, value in _gpu(nvml, handle)}
        return found

    def _rates(self) -> dict[str, float]:
        now, counted = time.monotonic(), dict(_counters())
        before, self._counted = self._counted, (now, counted)
        if before is None or now <= before[0]:
            return {}
        seconds = now - before[0]
        # A counter that went back belongs to a device that was taken out.
        return {
            f"{name}_per_s": max(0.0, value - before[1][name]) / seconds
            for name, value in counted.items()
            if name in before[1]
        }


def _counters() -> Iterator[tuple[str, float]]:
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()  # None where there is no such device
    if disk is not None:
        yield "disk_read_bytes", float(disk.read_bytes)
        yield "disk_written_bytes", float(disk.write_bytes)
    if network is not None:
        yield "network_received_bytes", float(network.bytes_recv)
        yield "network_sent_bytes", float(network.bytes_sent)


def _gpus() -> list[tuple[Any, Any]]:
    """NVML and the handle of each GPU; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu(nvml: Any, gpu: Any) -> Iterator[tuple[str, float]]:
    readings: list[tuple[str, Callable[[], float]]] = [
        ("utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        ("memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
        (
            "memory_percent",
            lambda: 100 * nvml.nvmlDeviceGetMemoryInfo(gpu).used / nvml.nvmlDeviceGetMemoryInfo(gpu).total,
        ),
        ("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        ("temperature_celsius", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
    ]
    for name, read in readings:
        try:
            yield name, float(read())
        except nvml.NVMLError:
            continue  # not every GPU has every sensor
