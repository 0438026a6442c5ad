"""The one thread in which a worker's component computes, whoever asks for it: Ray or the driver's line.

Libraries keep threads, devices and modes by thread (OpenMP, CUDA, PyTorch), so a component that was called now from
this and now from that thread would have several of each.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from rl_core.cluster import lines


class WorkThread:
    """Runs jobs one after the other, in the order in which they come.

    Args:
        call: what the driver's calls, a method and its arguments, are answered by.
    """

    def __init__(self, call: Callable[[str, tuple[Any, ...]], Any]) -> None:
        self._call = call
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._woken, self._wake = Pipe(duplex=False)
        self._line: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], Any]) -> Any:
        """What ``job`` returns or raises; called from that thread itself it runs at once."""
        if threading.current_thread() is self._thread:
            return job()
        done: Future[Any] = Future()
        self._jobs.put((job, done))
        self._wake.send_bytes(b"")
        return done.result()

    def open_line(self) -> lines.Address:
        """Where the driver is waited for, from here on."""
        return lines.wait_for_driver(lambda connection: self.run(lambda: self._take(connection)))

    def _take(self, connection: Connection) -> None:
        if self._line is not None:
            self._line.close()
        self._line = connection

    def _run(self) -> None:
        while True:
            sources = [self._woken] if self._line is None else [self._woken, self._line]
            for source in wait(sources):
                if source is self._woken:
                    self._work()
                elif source is self._line and not lines.answer(self._line, self._call):
                    self._line.close()
                    self._line = None

    def _work(self) -> None:
        self._woken.recv_bytes()
        job, done = self._jobs.get()
        try:
            done.set_result(job())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            done.set_exception(error)


def in_work_thread(method: Any) -> Any:
    """A method of an object with a :class:`WorkThread` in ``_work``, called there."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        return self._work.run(functools.partial(method, self, *args, **options))

    return called
