"""Memory that a process which trains on the CPU keeps: freed tensors, and compiled products.

Left alone glibc's allocator returns the activations of a step to the kernel, which clears every page again in the next
one: 5 to 10 % of a training step on the CPU. A process that trains takes as much in every step, so it may keep it.

oneDNN compiles products for their number of rows and keeps a thousand of them, with a copy of the weight each, twice.
Training seldom sees a number of rows again, so that a few are enough: those of a step.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_THRESHOLD = 32 << 20  # the most that glibc takes for M_MMAP_THRESHOLD
_NEVER = 2**31 - 1
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

_PRODUCTS = 48
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own, and PyTorch's


def keep_freed_memory() -> bool:
    """Have this process keep freed tensors of up to 32 MiB for later ones.

    Returns:
        whether it does: not where the environment says how malloc is to behave, or without glibc.
    """
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    return _set(trim=_NEVER, mmap=_LARGEST_THRESHOLD)


def keep_few_products() -> None:
    """Have this process keep the products of about one step compiled; before the first one, which reads the settings.

    What the user's environment says stays.
    """
    for name in _PRODUCT_CACHES:
        os.environ.setdefault(name, str(_PRODUCTS))


def _set(*, trim: int, mmap: int) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, mmap) and mallopt(_TRIM_THRESHOLD, trim))
