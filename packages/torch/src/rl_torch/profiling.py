"""Measuring what a worker does: named sections of its work, and torch's own trace of everything.

Implements :class:`rl_core.contracts.profiling.Profiles` for what holds a :class:`Profiler`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, record_function

logger = logging.getLogger(__name__)


class Profiler:
    """Off until :meth:`start`: then a section costs nothing and waits for no device.

    The trace has the work of the calling thread (and of the backward passes it starts) and of all CUDA devices.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] | None = None
        self._path: str | None = None
        self._trace: profile | None = None

    def start(self, trace: str | None = None) -> None:
        """Begin to measure, and to record for the file ``trace``.

        Raises:
            RuntimeError: it has begun already.
        """
        if self._seconds is not None:
            raise RuntimeError("the profile has begun already; call stop first")
        self._seconds, self._path = {}, trace
        if trace is not None:
            devices = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            # One cycle is all there is; without acc_events PyTorch 2.11 warns that it keeps no more.
            self._trace = profile(activities=[ProfilerActivity.CPU, *devices], acc_events=True)
            self._trace.start()

    def stop(self) -> dict[str, float]:
        """End it; seconds by section. A trace that cannot be written is a warning in the log.

        Raises:
            RuntimeError: it has not begun.
        """
        if self._seconds is None:
            raise RuntimeError("there is no profile to end; call start first")
        seconds, path, trace = self._seconds, self._path, self._trace
        self._seconds = self._path = self._trace = None
        if trace is not None and path is not None:
            trace.stop()
            try:
                trace.export_chrome_trace(path)
            except OSError as error:
                logger.warning("cannot write the trace %s: %s", path, error.strerror or error)
        return seconds

    def close(self) -> None:
        """End what is still going on, without a file."""
        if self._trace is not None:
            self._trace.stop()
        self._seconds = self._path = self._trace = None

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """The work of the block, to its end on the device; it has its name in the trace."""
        if self._seconds is None:
            yield
            return
        _finish_on_device()
        started = time.perf_counter()
        try:
            with record_function(name):
                yield
                _finish_on_device()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started


def _finish_on_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
