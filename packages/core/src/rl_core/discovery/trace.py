"""``RL_TRACE_PLUGINS=1``: where the time of plugin discovery goes, phase by phase, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Trace:
    """Writes one line per phase when enabled, and nothing otherwise."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, what: str, *, package: str = "") -> Iterator[None]:
        """Time the block; the line is written even when the block raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self._enabled:
                now = time.perf_counter()
                since, took = (now - self._started) * 1e3, (now - started) * 1e3
                who = f"{package}: " if package else ""
                sys.stderr.write(f"[plugins +{since:7.1f} ms] {who}{what} ({took:.1f} ms)\n")
