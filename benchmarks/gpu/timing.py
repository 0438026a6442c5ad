"""Shapes that are measured, and the clock: seconds of repeated steps, and the memory they took."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """A model's shape (the fields of ``model.init``), and the batch it is measured on.

    Attributes:
        sequences: per data-parallel rank and step.
    """

    init: Mapping[str, Any]
    vocab_size: int
    sequence_length: int = 4096
    sequences: int = 16
    max_tokens_per_microbatch: int = 16384


_QWEN2 = {"architecture": "qwen2", "kv_heads": 2, "tie_embeddings": True}
SIZES: Mapping[str, Size] = {
    "tiny": Size(
        {**_QWEN2, "hidden_size": 64, "layers": 2, "heads": 4, "ffn": 128},
        vocab_size=512,
        sequence_length=128,
        sequences=8,
        max_tokens_per_microbatch=512,
    ),
    "0.5b": Size({**_QWEN2, "hidden_size": 896, "layers": 24, "heads": 14, "ffn": 4864}, vocab_size=151936),
    "1.5b": Size({**_QWEN2, "hidden_size": 1536, "layers": 28, "heads": 12, "ffn": 8960}, vocab_size=151936),
}
"""The last two have the shapes of Qwen2.5-0.5B and Qwen2.5-1.5B."""


@dataclass(frozen=True)
class Timing:
    """What some steps took.

    Attributes:
        seconds: of each.
        peak_bytes: the most memory that was in use: PyTorch's on a GPU, the resident set of the process on CPU (with
            Python and its libraries); None where the system does not tell.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None


def time_steps(step: Callable[[], Any], *, device: str, warmup: int, steps: int) -> Timing:
    """Take ``warmup`` steps, then time ``steps`` of them, each to the end of its work on the device."""
    for _ in range(warmup):
        step()
    _reset_peak(device)
    seconds = []
    for _ in range(steps):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds), _peak_bytes(device))


def device_name(device: str) -> str:
    """As the vendor calls it."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (marks := Path("/proc/self/clear_refs")).exists():
        marks.write_text("5")


def _peak_bytes(device: str) -> int | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else None
