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


@contextmanager
def contained(package: str, doing: str) -> Iterator[None]:
    """What the block prints goes to stderr, and the working directory and signal handlers are put back after it.

    A block that takes longer than :data:`SLOW_S` is named in a warning: every ``rl`` command waits for it.
    """
    began = time.monotonic()
    folder = os.getcwd()
    handlers = {one: signal.getsignal(one) for one in _SIGNALS}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
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
        if (took := time.monotonic() - began) > SLOW_S:
            logger.warning("%s: %s took %.1f s", package, doing, took)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""
