"""Looking at a process that does not answer, on its own machine: its state and its stack; then ending it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a worker write the stacks of its threads into its log, whatever it is stuck in."""

_DUMP_S = 2.0
_PY_SPY_S = 20.0
_GONE_S = 5.0
_LOOKS, _BETWEEN_LOOKS_S = 7, 0.03

_STATES = {
    "stopped": "the process is stopped (by SIGSTOP, a terminal or a debugger)",
    "tracing-stop": "the process is stopped by a debugger",
    "disk-sleep": "the process waits for a disk, a network file system or a driver (state D)",
    "zombie": "the process has ended",
    "dead": "the process has ended",
    "running": "the process is computing",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        state: one sentence on what the process is doing.
        stack: stacks of its threads, innermost frame first, or why there are none.
    """

    state: str
    stack: str


def dump_on_signal(log: IO[str]) -> None:
    """In the process to be examined later: write stacks into ``log`` on :data:`DUMP_SIGNAL` and on fatal signals."""
    import faulthandler

    faulthandler.enable(file=log, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, file=log, all_threads=True, chain=False)


def examine(pid: int, log: str) -> Examination:
    """State and stacks of process ``pid``, which called :func:`dump_on_signal` with the file ``log``."""
    import psutil

    try:
        status = _usual_status(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return Examination("the process has ended", "there is no process to look at any more")
    state = _STATES.get(status, "the process sleeps, waiting for something")
    stopped = status in ("stopped", "tracing-stop")
    stack = "" if stopped else _own_dump(pid, Path(log))
    return Examination(state, stack or _py_spy(pid, stopped=stopped))


def examine_and_end(pid: int, log: str) -> Examination:
    """:func:`examine`, then SIGKILL, which also ends a stopped process; waits until it is gone."""
    found = examine(pid, log)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _GONE_S
        while time.monotonic() < deadline and _exists(pid):
            time.sleep(0.02)
    return found


def _usual_status(process: Any) -> str:
    """The one that it has most of the time: a thread that waits for Python's lock wakes up every few milliseconds."""
    seen: Counter[str] = Counter()
    for _ in range(_LOOKS):
        seen[process.status()] += 1
        time.sleep(_BETWEEN_LOOKS_S)
    return seen.most_common(1)[0][0]


def _exists(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _own_dump(pid: int, log: Path) -> str:
    """Have the process write its stacks; empty where nothing came in time."""
    try:
        before = log.stat().st_size
        os.kill(pid, DUMP_SIGNAL)
    except OSError as error:
        logger.warning("process %d cannot be asked for its stack: %s", pid, error)
        return ""
    deadline, size = time.monotonic() + _DUMP_S, before
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = log.stat().st_size
        if now > before and now == size:
            break
        size = now
    with log.open("rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace").strip()


def _py_spy(pid: int, *, stopped: bool) -> str:
    """The stack from outside, where py-spy is installed and allowed to look."""
    why = "a stopped process cannot write its stack" if stopped else "the process did not write its stack"
    program = shutil.which("py-spy")
    if program is None:
        return f"{why}; with py-spy on that machine it would be here (pip install py-spy)"
    try:
        done = subprocess.run(
            [program, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=_PY_SPY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{why}, and py-spy failed: {error}"
    return done.stdout.strip() or f"{why}, and py-spy failed: {done.stderr.strip()}"
