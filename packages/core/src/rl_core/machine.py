"""Memory of this machine, found without importing a GPU library."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


class Machine:
    """This machine, asked at most once for each number."""

    @functools.cached_property
    def gpu_memory_bytes(self) -> int | None:
        """See :func:`gpu_memory_bytes`; the driver takes up to seconds to answer."""
        return gpu_memory_bytes()

    @functools.cached_property
    def gpu_count(self) -> int | None:
        """See :func:`gpu_count`."""
        return gpu_count()

    @functools.cached_property
    def host_memory_bytes(self) -> int | None:
        """See :func:`host_memory_bytes`."""
        return host_memory_bytes()


def gpu_memory_bytes() -> int | None:
    """Of the smallest GPU that the NVIDIA driver lists; None without a driver."""
    return min(_gpu_sizes(), default=None)


def gpu_count() -> int | None:
    """GPUs that the NVIDIA driver lists; None without a driver."""
    return len(_gpu_sizes()) or None


def _gpu_sizes() -> list[int]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) * 2**20 for line in answer.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []  # a driver that does not answer is what `rl doctor` reports


def host_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Main memory, within the container's limit where there is one."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    for name in _CGROUP_LIMITS:
        try:
            return min(total, int((cgroup / name).read_text()))
        except (OSError, ValueError):
            continue  # not this version of cgroups, or "max"
    return total
