"""Watches one system from outside, whichever it is: wall time, CPU time and memory of all its processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# All looking takes time from the system that is watched, and more from one of many processes.
_LOOK_S = 0.004
"""How often the progress file is looked at: the error of a step's end."""

_MEMORY_S = 0.5
_SHARED_MEMORY_S = 10.0
"""Proportional set sizes cost the kernel milliseconds."""

_END_S = 10.0


@dataclass(frozen=True)
class Mark:
    """The end of a step.

    Attributes:
        wall: monotonic seconds.
        cpu: seconds that all processes of the system have used until the last mark at which they were read.
        machine: the same of everything on the machine.
    """

    wall: float
    cpu: float
    machine: float


@dataclass(frozen=True)
class Watched:
    """One run of one system.

    Attributes:
        marks: one for every line of the progress file.
        setup_s: from the start to the end of the first step.
        peak_rss: most bytes that all processes together had in memory until the last mark, memory that they share
            counted once for each (resident set size).
        peak_pss: the same with shared memory counted once (proportional set size), looked at less often.
    """

    marks: tuple[Mark, ...]
    setup_s: float
    peak_rss: int
    peak_pss: int


class SystemFailed(RuntimeError):
    """A system's process ended with an error, too early, or not at all."""


def watch(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    progress: Path,
    log: Path,
    steps: int,
    timeout_s: float,
    read_at: Collection[int] | None = None,
) -> Watched:
    """Run ``command`` to its end.

    Args:
        progress: the file that grows by a line as each step ends.
        log: for what the command prints.
        steps: lines to expect.
        read_at: steps (from 1) at whose ends CPU times are read; None: all.

    Raises:
        SystemFailed: with the end of ``log``.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        # A session of its own: whatever goes wrong, exactly its processes are ended.
        process = subprocess.Popen(
            command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    tree = _Tree(process.pid)
    marks: list[Mark] = []
    try:
        with _Lines(progress) as lines:
            next_look = next_shared = started
            ended = False
            while not ended:
                ended = process.poll() is not None  # before the file is looked at for the last time
                for _ in range(lines.new()):
                    now = time.monotonic()
                    if read_at is None or not marks or len(marks) + 1 in read_at:
                        cpu, everything = tree.cpu_seconds(), _machine_seconds()
                    marks.append(Mark(now, cpu, everything))
                now = time.monotonic()
                if now > started + timeout_s:
                    raise SystemFailed(f"{command[0]} is still not done after {timeout_s:.0f} s\n{_end_of(log)}")
                if now >= next_look and len(marks) < steps:
                    tree.look(shared=now >= next_shared)
                    next_shared = now + _SHARED_MEMORY_S if now >= next_shared else next_shared
                    next_look = now + _MEMORY_S
                time.sleep(_LOOK_S)
    finally:
        tree.end()
        process.wait()
    if process.returncode or len(marks) != steps:
        how = f"ended with {process.returncode} after {len(marks)} of {steps} steps"
        raise SystemFailed(f"{' '.join(command)}\n    {how}\n{_end_of(log)}")
    return Watched(tuple(marks), marks[0].wall - started, tree.peak_rss, tree.peak_pss)


class _Tree:
    """A process and all that descend from it, those that have ended included."""

    def __init__(self, pid: int) -> None:
        self._known: dict[int, psutil.Process] = {}
        self._cpu: dict[int, float] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known[pid] = psutil.Process(pid)
        self._root = self._known.get(pid)
        self.peak_rss = self.peak_pss = 0

    def look(self, *, shared: bool) -> None:
        """Find new processes and add up memory."""
        if self._root is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in self._root.children(recursive=True):
                    self._known.setdefault(child.pid, child)
        rss = pss = 0
        for process in list(self._known.values()):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                rss += process.memory_info().rss
                pss += _proportional(process.pid) if shared else 0
        self.peak_rss, self.peak_pss = max(self.peak_rss, rss), max(self.peak_pss, pss)

    def cpu_seconds(self) -> float:
        """Of all processes together, user and system."""
        for pid, process in self._known.items():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._cpu[pid] = times.user + times.system
        return sum(self._cpu.values())

    def end(self) -> None:
        """Kill what is left of it, and wait a little until it is gone."""
        for process in self._known.values():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        deadline = time.monotonic() + _END_S
        while any(_runs(process) for process in self._known.values()) and time.monotonic() < deadline:
            time.sleep(0.01)


class _Lines:
    """Counts the lines of a file that another process appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def new(self) -> int:
        """Lines that were completed since the last call."""
        if self._file is None:
            if not self._path.exists():
                return 0
            self._file = os.open(self._path, os.O_RDONLY)
        return os.read(self._file, 1 << 20).count(b"\n")


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts guests in user time, too.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - guests


def _end_of(log: Path) -> str:
    return "    " + "\n    ".join(log.read_text(errors="replace").splitlines()[-25:])
