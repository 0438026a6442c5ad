"""Several processes that answer tasks in parallel, each task under its own deadline."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from rl_core.errors import EnvironmentProblem

from rl_isolation.outcome import Outcome
from rl_isolation.worker import Service, Worker


@dataclass(eq=False)
class _Job:
    task: Any
    timeout_s: float
    result: Future[Outcome] = field(default_factory=Future)


class Pool:
    """Processes that are started when there are tasks for them, and kept until :meth:`close` or the program's end.

    A process has one task at a time, so one that is killed, or dies, takes that task with it and no other. Safe in
    threads.

    Args:
        service: what answers tasks.
        size: most processes.
        patience_s: how long a task waits for a process before there are twice as many; 0: one for each task at once.
    """

    def __init__(self, service: Service, *, size: int, patience_s: float = 0.0) -> None:
        self._name = service.name
        self._workers = _Workers(service, size, patience_s)
        self._owner = os.getpid()
        weakref.finalize(self, _close, self._workers, self._owner)

    def submit(self, task: Any, *, timeout_s: float) -> Future[Outcome]:
        """Start ``task``; cancelling the future kills the process that is working on it.

        Args:
            timeout_s: counted from when a process takes the task.

        Returns:
            a future with the outcome; its exceptions are those of :meth:`rl_isolation.worker.Worker.call`.

        Raises:
            EnvironmentProblem: this process is a fork of the one that made the pool.
        """
        if self._owner != os.getpid():
            raise EnvironmentProblem(
                f"the processes of {self._name} cannot be used in a fork of the process they serve"
            )
        job = _Job(task, timeout_s)
        self._workers.put(job)
        return job.result

    def map(self, tasks: Sequence[Any], *, timeout_s: float) -> list[Outcome]:
        """The outcome of each task, in order; an interrupt cancels those that are in progress."""
        results: list[Future[Outcome]] = []
        try:
            results += (self.submit(task, timeout_s=timeout_s) for task in tasks)
            return [result.result() for result in results]
        except BaseException:
            for result in results:
                result.cancel()
            raise

    def close(self) -> None:
        """End the processes; a later task starts new ones."""
        _close(self._workers, self._owner)

    @property
    def pids(self) -> list[int]:
        """Of the processes with the user's code."""
        return self._workers.pids()


class _Workers:
    """Threads with a worker each; they hold no reference to the pool, so that dropping it ends them."""

    def __init__(self, service: Service, size: int, patience_s: float) -> None:
        self._service = service
        self._size = size
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._leaving: set[threading.Thread] = set()
        self._at_work: dict[threading.Thread, tuple[Worker | None, _Job | None]] = {}
        self._idle = 0
        self._taken = time.monotonic()
        self._growing = False

    def put(self, job: _Job) -> None:
        """Have the job done."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
            if not self._at_work or not self._patience_s:
                self._add()
            elif self._waiting() > 0 and not self._growing:
                self._taken = time.monotonic()
                self._grow_later()

    def pids(self) -> list[int]:
        """Of the processes that have said theirs."""
        with self._changed:
            workers = [worker for worker, _ in self._at_work.values()]
        return [worker.pid for worker in workers if worker is not None and worker.pid is not None]

    def close(self) -> None:
        """End the processes, those at work as well, and wait for that."""
        with self._changed:
            threads = [thread for thread in self._at_work if thread is not threading.current_thread()]
            self._leaving |= set(threads)
            self._changed.notify_all()
            for worker, job in self._at_work.values():
                if worker is not None and job is not None:
                    worker.cancel()
        for thread in threads:
            thread.join()

    def _waiting(self) -> int:
        """Jobs that no thread is there for."""
        return len(self._jobs) - self._idle

    def _add(self) -> None:
        if self._waiting() > 0 and len(self._at_work) < self._size:
            thread = threading.Thread(target=self._work, name=f"calls of {self._service.name}", daemon=True)
            self._at_work[thread] = (None, None)
            self._idle += 1
            thread.start()

    def _grow_later(self) -> None:
        self._growing = len(self._at_work) < self._size
        if self._growing:
            timer = threading.Timer(self._patience_s, self._grow)
            timer.daemon = True
            timer.start()

    def _grow(self) -> None:
        """Twice as many where no job was taken for a while."""
        with self._changed:
            self._growing = False
            if self._waiting() > 0:
                if time.monotonic() - self._taken >= self._patience_s:
                    for _ in range(len(self._at_work)):
                        self._add()
                self._grow_later()

    def _work(self) -> None:
        me, worker = threading.current_thread(), None
        while (job := self._take(me)) is not None:
            try:
                worker = worker or Worker(self._service)
                self._do(me, worker, job)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the job gets it
                _settle(job, error)
            with self._changed:
                self._at_work[me] = (worker, None)
                self._idle += 1
        if worker is not None:
            worker.close()
        with self._changed:
            del self._at_work[me]
            self._leaving.discard(me)
            self._add()

    def _take(self, me: threading.Thread) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or me in self._leaving)
            self._idle -= 1
            self._taken = time.monotonic()
            return None if me in self._leaving else self._jobs.popleft()

    def _do(self, me: threading.Thread, worker: Worker, job: _Job) -> None:
        def cancel(result: Future[Outcome]) -> None:
            with self._changed:
                if result.cancelled() and self._at_work[me][1] is job:
                    worker.cancel()

        with self._changed:
            self._at_work[me] = (worker, job)
        job.result.add_done_callback(cancel)
        if not job.result.cancelled():
            _settle(job, worker.call(job.task, timeout_s=job.timeout_s))


def _settle(job: _Job, outcome: Outcome | BaseException) -> None:
    try:
        if isinstance(outcome, BaseException):
            job.result.set_exception(outcome)
        else:
            job.result.set_result(outcome)
    except InvalidStateError:
        pass  # it was cancelled


def _close(workers: _Workers, owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits the threads' names, not the processes
        workers.close()
