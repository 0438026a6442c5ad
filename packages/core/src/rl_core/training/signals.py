"""Being asked to stop: Ctrl-C, SIGTERM, or the end of the time there is. All finish the step, save and stop.

Ctrl-C twice stops at once. A scheduler's SIGTERM may come more than once; it never cuts a save short.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rl_core.errors import Interrupted, Preempted

logger = logging.getLogger("rl")


class StopRequest:
    """Whether the run should stop after the step it is in, and why.

    Args:
        limit_s: seconds from now within which a checkpoint must have been saved (``run.save_before_timeout``).
        clock: seconds, monotonic.
    """

    def __init__(self, *, limit_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if limit_s is None else clock() + limit_s
        self._last = clock()
        self._longest = 0.0
        self._error: type[Interrupted] | None = None
        self._reason = ""

    @property
    def requested(self) -> bool:
        return self._error is not None

    def __bool__(self) -> bool:
        return self.requested

    def request(self, error: type[Interrupted] = Interrupted, *, reason: str = "") -> None:
        """Ask to stop; the first reason counts.

        Args:
            error: what the run ends with.
            reason: first words of its message.
        """
        if self._error is None:
            self._error, self._reason = error, reason

    def steps_begin(self) -> None:
        """To be called before a stage's first step: loading is no measure of how long a step takes."""
        self._last = self._clock()

    def step_done(self) -> None:
        """To be called after every step, its checkpoint included: stops where another may not fit before the limit."""
        now = self._clock()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        if self._deadline is not None and not self and now + self._longest >= self._deadline:
            logger.warning("run.save_before_timeout is near: saving a checkpoint and stopping")
            self.request(Preempted, reason="run.save_before_timeout: ")

    def error(self, message: str) -> Interrupted:
        """What to raise when the run has stopped."""
        return (self._error or Interrupted)(f"{self._reason}{message}")


@contextmanager
def stop_on_interrupt(limit_s: float | None = None) -> Iterator[StopRequest]:
    """While the block runs, SIGINT, SIGTERM and the time limit set the request; a second SIGINT stops at once."""
    stop = StopRequest(limit_s=limit_s)
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    listen(stop)
    try:
        yield stop
    finally:
        if _may_listen():
            for signum, handler in previous.items():
                signal.signal(signum, handler or signal.SIG_DFL)


def listen(stop: StopRequest) -> None:
    """Have the signals set ``stop``; to be called again after ``ray.init``, which puts its own handler of SIGTERM."""

    def interrupted(signum: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.request()
        logger.warning("stopping after this step (a checkpoint will be saved); press Ctrl-C again to stop at once")

    def terminated(signum: int, frame: FrameType | None) -> None:
        if not stop:
            logger.warning("SIGTERM: stopping after this step; a checkpoint will be saved")
        stop.request(Preempted, reason="SIGTERM: ")

    if _may_listen():
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, terminated)


def _may_listen() -> bool:
    return threading.current_thread() is threading.main_thread()
