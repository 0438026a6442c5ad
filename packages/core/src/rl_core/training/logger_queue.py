"""A logger in a thread of its own, behind a bounded queue: it may block, fail or be slow, and training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from rl_core.contracts.logger import Logger

logger = logging.getLogger("rl")

Call = Callable[[Logger], None]

SIZE = 1000
"""Calls that wait; further ones are lost, and counted."""
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0


class LoggerQueue:
    """Calls of one logger, made one at a time and in order by a daemon thread.

    A call that raises OSError is made again, after 0.5 s at first and after 30 s at last, until it succeeds or the run
    has ended. Any other exception loses the call, and the logger where it comes from ``start``. There is one warning.
    """

    def __init__(self, name: str, one: Logger, *, size: int = SIZE, first_retry_s: float = FIRST_RETRY_S) -> None:
        self.logger = one
        self.lost = 0
        self._name = name
        self._size = size
        self._first_retry_s = first_retry_s
        self._calls: deque[tuple[Call, bool]] = deque()
        self._changed = threading.Condition()
        self._closing = self._expired = self._dropped = self._warned = False
        self._thread = threading.Thread(target=self._work, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def put(self, call: Call, *, start: bool = False) -> None:
        """Have ``call`` made; it is lost where the queue is full, unless it is the ``start`` of a stage."""
        with self._changed:
            if not (self._dropped or self._closing) and (start or len(self._calls) < self._size):
                self._calls.append((call, start))
                self._changed.notify_all()
                return
            self.lost += 1
        self._warn(f"is behind by {self._size} calls; further ones are lost")

    def close(self, last: Call) -> None:
        """No more calls come after ``last``. See :meth:`join`."""
        self.put(last, start=True)
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait for the thread until ``deadline`` (``time.monotonic()``), then leave it to its last call."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._expired = True
            left = len(self._calls)
            self._changed.notify_all()
        if self._thread.is_alive():
            self.lost += left
            logger.warning("logger %r has not ended in time: the run does not wait for its last calls", self._name)
        if self.lost:
            logger.warning("logger %r: %d calls are lost", self._name, self.lost)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closing or self._expired)
                if self._expired or not self._calls:
                    return
                call, start = self._calls[0]  # it stays in the queue, and is counted, until it is made
            made = self._make(call, start)
            with self._changed:
                if self._expired:
                    return
                self._calls.popleft()
                self.lost += not made
                if self._dropped:
                    self.lost += len(self._calls)
                    return

    def _make(self, call: Call, start: bool) -> bool:
        pause = self._first_retry_s
        while True:
            try:
                call(self.logger)
                return True
            except OSError as error:
                self._warn(f"failed and is tried again: {type(error).__name__}: {error}")
                with self._changed:
                    if self._changed.wait_for(lambda: self._expired, pause):
                        return False
                    pause = self._first_retry_s if self._closing else min(2 * pause, LONGEST_RETRY_S)
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                self._dropped = self._dropped or (start and not self._closing)
                end = " and is dropped" if self._dropped else ""
                self._warn(f"failed{end}: {type(error).__name__}: {error}")
                return False

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("logger %r %s; training goes on", self._name, message)
