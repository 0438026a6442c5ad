"""Running a plugin's code so that what it does to the process does not outlast it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SLOW_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


_running: list[tuple[str, str, float]] = []
"""``(package, what it does, when it began)`` of the blocks that are running, the innermost last."""


@contextmanager
def watched() -> Iterator[None]:
    """Name slow blocks of :func:`contained` while they run: each ``rl`` command waits, perhaps for ever."""
    done = threading.Event()
    threading.Thread(target=_watch, args=(done,), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(done: threading.Event) -> None:
    named = None
    while not done.wait(SLOW_S / 4):
        for one in _running[-1:]:
            if one is not named and time.monotonic() - one[2] > SLOW_S:
                logger.warning("%s: %s takes more than %g s", one[0], one[1], SLOW_S)
                named = one


@contextmanager
def contained(package: str, doing: str) -> Iterator[None]:
    """What the block prints goes to stderr, and the working directory and signal handlers are put back after it.

    Inside of :func:`watched`, a block that takes longer than :data:`SLOW_S` is named in a warning.
    """
    running = (package, doing, time.monotonic())
    _running.append(running)
    folder = os.getcwd()
    handlers = {one: signal.getsignal(one) for one in _SIGNALS}
    try:
        with _output_to_stderr():
            yield
    finally:
        _running.remove(running)
        changed = []
        if _working_directory() != folder:
            os.chdir(folder)
            changed.append("the working directory")
        for one, handler in handlers.items():
            in_main = threading.current_thread() is threading.main_thread()
            if signal.getsignal(one) is not handler and handler is not None and in_main:
                signal.signal(one, handler)
                changed.append(f"the handler of {one.name}")
        if changed:
            logger.warning("%s: %s changed %s, which was put back", package, doing, " and ".join(changed))


@contextmanager
def _output_to_stderr() -> Iterator[None]:
    """``sys.stdout``, and descriptor 1, to which C libraries and child processes write."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader has gone; it is closed; there is none
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    try:
        with contextlib.suppress(OSError):  # stderr is closed
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""
