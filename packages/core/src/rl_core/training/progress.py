"""Telling the user what is going on: a spinner on a terminal, a log line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("rl")


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show ``what`` while the block runs, and how long it took when it was more than a second."""
    started = time.perf_counter()
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield
    else:
        logger.info("%s …", what)
        yield
    took = time.perf_counter() - started
    if took > 1:
        logger.info("%s: %.1f s", what, took)
