"""Whether the Ray that this process uses is still there, and calls that must not wait for one that is gone.

A call that needs Ray's control process (the GCS) waits for a dead one: sixty seconds, and then Ray ends the whole
process. Calls on actors fail within seconds, so only the others need :meth:`RayLoss.guard`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

import psutil

from rl_ray.head import process_name

logger = logging.getLogger("rl")

T = TypeVar("T")

LOOK_EVERY_S = 0.25
"""How often the processes of a Ray of our own are looked at."""
STOPPED_S = 30.0
"""A process that is stopped (SIGSTOP, a debugger) for this long is as good as dead: nothing that asks it returns."""
ASK_EVERY_S = 1.0
"""How often a cluster that was there before is asked whether this machine still belongs to it."""
SILENT_S = 40.0
"""A cluster that has not answered for this long is lost: less than the 60 s after which Ray ends this process."""
_TOLD_S = 5.0
_GUARD_S = 0.1
_LAST_ANSWER_S = 5.0


class RayLoss:
    """What has become of Ray, as far as it is known; shared by all that call it.

    Args:
        error: reason → what is raised in those who wait for Ray.

    Attributes:
        reason: why Ray is gone, or empty.
    """

    def __init__(self, error: Callable[[str], Exception]) -> None:
        self.reason = ""
        self._error = error
        self._lost = threading.Event()

    def declare(self, reason: str) -> None:
        """Ray is gone; the first reason counts."""
        if not self._lost.is_set():
            self.reason = reason
            self._lost.set()

    def clear(self) -> None:
        """There is another Ray."""
        self.reason = ""
        self._lost.clear()

    def wait(self, timeout_s: float) -> bool:
        """Whether Ray is gone, or will be known to be within this time."""
        return self._lost.wait(timeout_s)

    @property
    def error(self) -> Exception:
        """For whoever waits for an answer."""
        return self._error(self.reason)

    def check(self) -> None:
        """Raise :attr:`error` where Ray is gone."""
        if self._lost.is_set():
            raise self.error

    def guard(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises; it may ask Ray's control process.

        Raises:
            Exception: :attr:`error` where Ray is gone. The call is left behind in its thread.
        """
        self.check()
        returned = in_background(call)
        while not wait([returned], timeout=_GUARD_S).done:
            self.check()
        return returned.result()


def in_background(call: Callable[[], T]) -> Future[T]:
    """What ``call`` returns or raises, in a thread that may be left behind: it does not keep the process."""
    returned: Future[T] = Future()

    def run() -> None:
        try:
            returned.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            returned.set_exception(error)

    threading.Thread(target=run, name="asking Ray", daemon=True).start()
    return returned


class ProcessWatch:
    """Watches the processes of a Ray of our own, and tells ``loss`` when one ends or stays stopped.

    Args:
        head: process id of ``ray start``, whose children are the daemons.
        stopped_s: how long one may be stopped.
    """

    def __init__(self, loss: RayLoss, head: int, *, stopped_s: float = STOPPED_S) -> None:
        self._loss = loss
        self._stopped_s = stopped_s
        self._stopped_since: dict[int, float] = {}
        self._ended = threading.Event()
        try:
            starter = psutil.Process(head)
            self._processes = [(process_name(child), child) for child in starter.children()] + [("ray start", starter)]
        except psutil.NoSuchProcess:
            loss.declare("the Ray of this run is lost: it has ended at once")
            return
        threading.Thread(target=self._run, name="watching Ray's processes", daemon=True).start()

    def close(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            found = ((name, process, self._fault(process)) for name, process in self._processes)
            lost = next((f"{name} (pid {process.pid}) {fault}" for name, process, fault in found if fault), None)
            if lost and not self._ended.is_set():
                reason = f"the Ray of this run is lost: {lost}"
                logger.warning("%s", reason)
                self._loss.declare(reason)
                return

    def _fault(self, process: psutil.Process) -> str:
        """What is wrong with it, or empty."""
        status = _status(process)
        if status in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
            return "has ended"
        if status not in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            self._stopped_since.pop(process.pid, None)
            return ""
        stopped_s = time.monotonic() - self._stopped_since.setdefault(process.pid, time.monotonic())
        return f"has been stopped for {self._stopped_s:g} s" if stopped_s > self._stopped_s else ""


class NodeWatch:
    """Asks a Ray that we did not start whether it is there, and tells ``loss`` when it is not.

    In two threads: the one that asks waits while nobody answers.
    """

    def __init__(
        self, loss: RayLoss, *, node_id: str | None, on_loss: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._loss = loss
        self._node_id = node_id
        self._on_loss = on_loss
        self._answered = time.monotonic()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=t, name="watching Ray", daemon=True) for t in (self._ask, self._look)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Watch no longer; a question that is on its way is waited for, but not for long."""
        self._ended.set()
        if not self._loss.reason:
            self._threads[0].join(_LAST_ANSWER_S)

    def _ask(self) -> None:
        import ray

        while not self._ended.wait(ASK_EVERY_S):
            # Where Ray cannot say anything the other thread counts the seconds.
            with contextlib.suppress(Exception):
                nodes = ray.nodes()
                self._answered = time.monotonic()
                if self._node_id is not None and not _alive(nodes, self._node_id):
                    self._lose("Ray on this machine has ended, or has left its cluster")

    def _look(self) -> None:
        told = False
        while not self._ended.wait(LOOK_EVERY_S):
            silent_s = time.monotonic() - self._answered
            if silent_s > SILENT_S:
                self._lose(f"the Ray cluster has not answered for {SILENT_S:g} s: its head is gone")
            elif silent_s > _TOLD_S and not told:
                logger.warning("the Ray cluster does not answer; it is waited for up to %g s", SILENT_S)
            told = silent_s > _TOLD_S

    def _lose(self, reason: str) -> None:
        if not self._ended.is_set():
            self._ended.set()
            logger.warning("%s", reason)
            self._on_loss(reason)
            self._loss.declare(reason)


def _status(process: psutil.Process) -> str:
    try:
        return process.status() if process.is_running() else psutil.STATUS_DEAD
    except psutil.Error:
        return psutil.STATUS_DEAD


def _alive(nodes: Sequence[dict], node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in nodes)
