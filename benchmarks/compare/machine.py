"""The machine: whether it is quiet, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import psutil

QUIET_CORES = 0.2
"""A machine with less work than this is quiet."""


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions of this environment."""
    import ray
    import torch
    import transformers

    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "processor": found[1] if found else platform.processor(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ray": ray.__version__,
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores(seconds: float = 1.0) -> float:
    """Cores' worth of work on the whole machine during the next ``seconds``."""
    return psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)


def wait_until_quiet(limit: float, *, patience_s: float) -> float:
    """Wait until fewer than ``limit`` cores are busy, at most ``patience_s``; returns how many then are."""
    deadline = time.monotonic() + patience_s
    while (busy := busy_cores()) > limit and time.monotonic() < deadline:
        time.sleep(2.0)
    return busy


def matrix_peaks(threads: int, *, size: int = 2048, seconds: float = 2.0) -> dict[str, float]:
    """Operations a second of square matrix products: the best of those that fit into ``seconds``, by precision."""
    import torch

    torch.set_num_threads(threads)
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, size, size).to(dtype)
        out, best = torch.empty(size, size, dtype=dtype), float("inf")
        torch.mm(a, b, out=out)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - start)
        peaks[name] = 2 * size**3 / best
    return peaks
