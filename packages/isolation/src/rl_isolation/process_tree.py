"""Ending processes with everything they started. Only the standard library: a supervisor imports it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SUBREAPER = 1, 4, 36
_END_S = 5.0


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none gets away (Linux)."""
    _prctl(_SET_SUBREAPER, 1)


def hide_memory(hidden: bool) -> None:
    """Whether other processes of the same user may not read this one's memory and descriptors (Linux, unless root)."""
    _prctl(_SET_DUMPABLE, 0 if hidden else 1)


def end_with_parent(parent: int) -> None:
    """Be killed when the process ``parent`` ends (Linux)."""
    _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_descendants() -> None:
    """Kill every process below this one and collect those that become its children; within seconds."""
    until = time.monotonic() + _END_S
    while (pids := _descendants(os.getpid())) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.001)


def reap() -> dict[int, int]:
    """Collect children that ended: process id → wait status."""
    found: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found[ended[0]] = ended[1]
    return found


def how_it_ended(code: int) -> str:
    """``exit code 3`` or ``signal SIGABRT``; negative codes are signals."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"


def _descendants(root: int) -> list[int]:
    if sys.platform != "linux":
        import psutil

        return [child.pid for child in psutil.Process(root).children(recursive=True)]
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked
        found += children.get(pid, ())
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
