"""The soft limit: threads for code whose state lives in the driver.

The plain methods of environments that plugins offer need it: the contract builds an environment in the driver, and
lets it hold its conversations there. (A user's own class and tools are given by reference, and run in processes.) A
late call is *given up*: whoever waits for it is told, and its thread runs on until its function returns. It keeps
neither the other calls nor the process waiting. Code that can run elsewhere belongs into a
:class:`rl_isolation.pool.Pool`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class _Job:
    """A function to call, and where its result goes; ``settled`` once something went there."""

    function: Callable[[], Any]
    result: Future[Any]
    late: Callable[[], Exception]
    began: float = 0.0
    settled: threading.Lock = field(default_factory=threading.Lock)


class SoftLimitThreads:
    """Up to ``size`` threads that work off a queue, in order.

    Unlike an executor's, the threads are daemons (a hanging one does not stop the process from ending), and a thread
    whose job is given up is replaced. Python threads cannot be stopped: that one ends when its function returns.
    """

    def __init__(self, size: int, *, timeout_s: float) -> None:
        self._size = size
        self._timeout_s = timeout_s
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: set[_Job] = set()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], Any], result: Future[Any], *, late: Callable[[], Exception]) -> None:
        """Call ``function`` and put what it returns or raises into ``result``; what ``late`` makes, if it is late."""
        self._queue.put(_Job(function, result, late))
        with self._lock:
            if not self._threads:
                self._add_threads(1)

    def grow(self) -> bool:
        """Double the threads where jobs are waiting; whether to ask again soon.

        Jobs of microseconds are done soonest by a single thread: each further one costs switching between them.
        """
        with self._lock:
            waiting = self._queue.qsize()
            if waiting > self._idle:
                self._add_threads(self._threads)
            # A thread that just took a job may count as idle still: then the next job waits without anybody for it.
            return waiting > 0 and self._threads < self._size

    def give_up_late(self) -> float:
        """Fail the jobs that run longer than ``timeout_s``; seconds until another one may be late."""
        now = time.monotonic()
        with self._lock:
            late = [job for job in self._running if now - job.began >= self._timeout_s]
            for job in late:
                self._running.discard(job)
                self._threads -= 1
                self._add_threads(1)
            oldest = min((job.began for job in self._running), default=now)
        for job in late:
            if job.settled.acquire(blocking=False):
                job.result.set_exception(job.late())
        return max(0.0, oldest + self._timeout_s - now)

    def close(self) -> None:
        """End the idle threads; the others end after their job."""
        for _ in range(self._size):
            self._queue.put(None)

    def _add_threads(self, count: int) -> None:
        """Up to ``count`` more threads, as far as there is work for them."""
        for _ in range(min(count, self._size - self._threads, self._queue.qsize() - self._idle)):
            self._threads += 1
            threading.Thread(target=self._work, name="environment call", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._queue.get()
            with self._lock:
                self._idle -= 1
                if job is None:
                    self._threads -= 1
                    return
                job.began = time.monotonic()
                self._running.add(job)
            self._run(job)
            with self._lock:
                if job not in self._running:  # given up: another thread has taken this one's place
                    return
                self._running.discard(job)

    def _run(self, job: _Job) -> None:
        value, failure = None, None
        try:
            value = job.function()
        except BaseException as error:  # noqa: BLE001 - even SystemExit is the job's own failure
            failure = error
        if not job.settled.acquire(blocking=False):
            return
        if failure is None:
            job.result.set_result(value)
        else:
            job.result.set_exception(failure)
