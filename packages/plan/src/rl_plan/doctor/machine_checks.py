"""``rl doctor``: checks of the machine: cores, memory, disk, shared memory, limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rl_plan.doctor.finding import Finding, gib

_GIB = 2**30


def system() -> Iterator[Finding]:
    """Operating system and usable cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Finding("system", "ok", f"{name}, {usable} CPU cores usable")


def memory() -> Iterator[Finding]:
    """Free memory, within the container's limit where there is one."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    limit, used = cgroup_memory()
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - used)
    detail = f"{gib(available)} available of {gib(total)}"
    if available < 2 * _GIB:
        yield Finding("memory", "warn", detail, "close other programs; each worker needs about 1 GiB besides its model")
    else:
        yield Finding("memory", "ok", detail)


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """``(limit, used)`` bytes of the container's cgroup (v2 or v1); the limit is None where there is none."""
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((root / limit_file).read_text()), int((root / used_file).read_text())
        except (OSError, ValueError):
            continue  # not this version, or "max"
    return None, 0


def disk() -> Iterator[Finding]:
    """Space where runs are written and where Ray keeps its session files."""
    for label, path in (("disk (runs)", Path.cwd()), ("disk (temporary files)", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(path).free
        detail = f"{gib(free)} free in {path}"
        if free < _GIB:
            yield Finding(label, "fail", detail, "free some space: a run cannot write its checkpoints")
        elif free < 10 * _GIB:
            yield Finding(label, "warn", detail, "a checkpoint takes about 14 bytes per parameter")
        else:
            yield Finding(label, "ok", detail)


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Ray's object store lives here on Linux; where it is too small Ray falls back to the much slower disk."""
    if not path.is_dir():
        yield Finding("shared memory", "ok", f"{path} is not used on {platform.system()}")
        return
    size = shutil.disk_usage(path)
    detail = f"{gib(size.free)} free of {gib(size.total)} in {path}"
    if size.free < _GIB:
        yield Finding("shared memory", "warn", detail, "start the container with --shm-size=8g (or more)")
    else:
        yield Finding("shared memory", "ok", detail)


def network(cluster: str) -> Iterator[Finding]:
    """The interface that process groups would listen on, where nobody authenticates.

    Args:
        cluster: ``RAY_ADDRESS``; empty for runs on this machine alone.
    """
    from rl_core.network import LOOPBACK, chosen, describe, interface_towards, interfaces

    name, address = chosen(LOOPBACK, otherwise="")
    if cluster in ("", "local", "cluster"):  # the last is that of `rl cluster start`
        yield Finding("network", "ok", f"runs on this machine listen on {name} ({address}) only")
        return
    host = cluster.removeprefix("ray://").rpartition(":")[0].strip("[]")
    towards = interface_towards(host) if host else None
    if towards is None:
        detail = f"which interface of this machine leads to the cluster is not known; it has {describe()}"
    else:
        detail = f"workers on several machines listen on {towards} ({interfaces()[towards][0]})"
    yield Finding(
        "network",
        "warn",
        f"{detail}, where gloo, NCCL and torch's stores authenticate nobody",
        "keep this network private (SECURITY.md), or name another with run.network_interface",
    )


def open_files() -> Iterator[Finding]:
    """Ray opens several files per worker and connection."""
    yield _limit("open files", resource.RLIMIT_NOFILE, at_least=4096, fix="ulimit -n 65536")


def processes() -> Iterator[Finding]:
    """Threads count as processes here, and Ray and PyTorch start dozens per worker."""
    yield _limit("processes", resource.RLIMIT_NPROC, at_least=4096, fix="ulimit -u 65536")


def locked_memory() -> Iterator[Finding]:
    """NCCL registers its buffers with InfiniBand cards, which takes memory that cannot be swapped out."""
    if Path("/dev/infiniband").is_dir():
        fix = "ulimit -l unlimited (containers: --ulimit memlock=-1)"
        yield _limit("locked memory", resource.RLIMIT_MEMLOCK, at_least=_GIB, fix=fix)


def _limit(check: str, which: int, *, at_least: int, fix: str) -> Finding:
    soft, hard = resource.getrlimit(which)
    shown = ["unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)]
    detail = f"limit {shown[0]} (hard limit {shown[1]})"
    if soft != resource.RLIM_INFINITY and soft < at_least:
        return Finding(check, "warn", detail, fix)
    return Finding(check, "ok", detail)
