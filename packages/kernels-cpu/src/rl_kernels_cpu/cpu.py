"""Features of this machine's CPU; False if unknown."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch

_CPUS = Path("/proc/cpuinfo")


@functools.cache
def mkl_at_home() -> bool:
    """Whether PyTorch's BLAS is MKL on a CPU of its maker; on others it takes slower code."""
    return torch.backends.mkl.is_available() and "GenuineIntel" in _described()


@functools.cache
def bfloat16_is_slower() -> bool:
    """Whether products of bfloat16 take longer than of float32.

    Intel's CPUs without AMX have one unit for AVX-512's dot products of bfloat16 where they have two for float32, or
    no such instruction at all.
    """
    described = _described()
    return "GenuineIntel" in described and "amx_bf16" not in described


def _described() -> str:
    if sys.platform != "linux":
        return ""
    try:
        return _CPUS.read_text(encoding="utf-8")
    except OSError:
        return ""
