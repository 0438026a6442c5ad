"""What glibc's allocator does with freed memory.

Left alone it returns the activations of a step to the kernel, which clears every page again in the next one: 5 to 10 %
of a training step on the CPU. A process that trains takes as much in every step, so it may keep it.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_THRESHOLD = 32 << 20  # the most that glibc takes for M_MMAP_THRESHOLD
_NEVER = 2**31 - 1
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

_given_back = False


def keep_freed_memory() -> bool:
    """Have this process keep freed tensors of up to 32 MiB for later ones.

    Returns:
        whether it does: not where the user's environment says how malloc is to behave, where
        :func:`give_back_freed_memory` was called, or without glibc.
    """
    if _given_back or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    return _set(trim=_NEVER, mmap=_LARGEST_THRESHOLD)


def give_back_freed_memory() -> None:
    """Have this process return every freed tensor of more than 64 KiB at once, for good: what is in use shows."""
    global _given_back
    _given_back = True
    _set(trim=65536, mmap=65536)


def _set(*, trim: int, mmap: int) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, mmap) and mallopt(_TRIM_THRESHOLD, trim))
