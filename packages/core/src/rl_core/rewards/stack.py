"""Where a reward is when its deadline passes: its process writes its stacks into a file, and who asked reads them."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sysconfig
import time
from typing import IO

DUMP_SIGNAL = signal.SIGUSR2
"""Makes the process write its stacks, whatever it is stuck in."""

_WAIT_S = 1.0
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in ', re.MULTILINE)


def dump_on_signal(descriptor: int) -> None:
    """In the process of the reward: write stacks to an open file on :data:`DUMP_SIGNAL`."""
    faulthandler.register(DUMP_SIGNAL, file=descriptor, all_threads=True, chain=False)


def stacks_of(pid: int, file: IO[bytes]) -> str:
    """What process ``pid`` writes when it is asked for its stacks, the main thread's last; empty where nothing came."""
    try:
        os.kill(pid, DUMP_SIGNAL)
    except ProcessLookupError:
        return ""
    deadline, size = time.monotonic() + _WAIT_S, 0
    while time.monotonic() < deadline:
        time.sleep(0.02)
        before, size = size, os.fstat(file.fileno()).st_size
        if size and size == before:
            break
    return os.pread(file.fileno(), size, 0).decode(errors="replace").strip()


def place_in(stacks: str) -> str:
    """`` (file:line)`` of the innermost frame of the main thread that is not in Python's own library."""
    main = stacks.rpartition("most recent call first")[2]
    frames = [(found["file"], found["line"]) for found in _FRAME.finditer(main)]
    library = sysconfig.get_path("stdlib") + os.sep
    packages = sysconfig.get_path("purelib") + os.sep
    own = [(file, line) for file, line in frames if file.startswith(packages) or not file.startswith(library)]
    return " ({}:{})".format(*(own or frames)[0]) if frames else ""
