"""A few worker processes that answer questions side by side, each under a deadline."""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

from rl_core.errors import EnvironmentProblem

from rl_reward_math.process import WorkerOptions, WorkerProcess
from rl_reward_math.verdict import Question, Verdict

_log = logging.getLogger(__name__)

_START_S = 120.0
_START_ATTEMPTS = 3


class WorkerPool:
    """Worker processes, started at the first question and kept until :meth:`close` or the end of the program.

    A worker has one question at a time, so a worker that is killed, or dies, takes one verdict with
    it and no other. Calls from several threads wait for each other.

    Args:
        workers: number of processes.
        options: what each of them is started with; ``options.timeout_s`` is the deadline per question.
    """

    def __init__(self, *, workers: int, options: WorkerOptions) -> None:
        self._size = workers
        self._options = options
        self._lock = threading.Lock()
        self._workers: list[WorkerProcess] = []
        self._owner = os.getpid()
        weakref.finalize(self, _kill, self._workers, self._owner)

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict per question, in order.

        Raises:
            EnvironmentProblem: no worker can be started.
        """
        with self._lock:
            if self._owner != os.getpid():
                raise EnvironmentProblem("a pool of math workers cannot be used in a fork of the process that built it")
            try:
                return _Round(self._workers, questions, size=self._size, options=self._options).run()
            except BaseException:
                # Interrupted: the workers still have questions of this call.
                _kill(self._workers, self._owner)
                raise

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        with self._lock:
            _kill(self._workers, self._owner)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that were started and not replaced."""
        return [worker.pid for worker in self._workers]


class _Round:
    """The questions of one call, handed out until all have a verdict."""

    def __init__(
        self, workers: list[WorkerProcess], questions: Sequence[Question], *, size: int, options: WorkerOptions
    ) -> None:
        self._workers = workers
        self._questions = questions
        self._size = min(size, len(questions))
        self._options = options
        self._waiting = deque(range(len(questions)))
        self._verdicts: dict[int, Verdict] = {}
        self._deadlines: dict[int, float] = {worker.pid: time.monotonic() + _START_S for worker in workers}
        self._failed_starts = 0

    def run(self) -> list[Verdict]:
        # A worker may have died since the last call; no question was lost with it.
        for worker in [one for one in self._workers if not one.alive()]:
            self._remove(worker)
        while len(self._verdicts) < len(self._questions):
            self._employ()
            self._wait()
        self._report()
        return [self._verdicts[index] for index in range(len(self._questions))]

    def _employ(self) -> None:
        """Start the workers that are missing and give the idle ones a question."""
        unanswered = len(self._questions) - len(self._verdicts)
        while len(self._workers) < min(self._size, unanswered):
            worker = WorkerProcess(self._options)
            self._workers.append(worker)
            self._deadlines[worker.pid] = time.monotonic() + _START_S
        for worker in self._workers:
            if worker.ready and worker.index is None and self._waiting:
                index = self._waiting.popleft()
                worker.ask(index, self._questions[index])
                self._deadlines[worker.pid] = time.monotonic() + self._options.timeout_s

    def _wait(self) -> None:
        """Until a worker replies, ends, takes more of its question, or is past its deadline."""
        active = [worker for worker in self._workers if worker.index is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in active:
                selector.register(worker.output, selectors.EVENT_READ, worker)
                if worker.unsent:
                    selector.register(worker.input, selectors.EVENT_WRITE, worker)
            first = min(self._deadlines[worker.pid] for worker in active)
            for key, events in selector.select(max(first - time.monotonic(), 0)):
                if key.data not in self._workers:  # its other event took it away
                    continue
                if events & selectors.EVENT_WRITE:
                    key.data.write()
                else:
                    self._read(key.data)
        now = time.monotonic()
        for worker in active:
            busy = worker.index is not None or not worker.ready
            if worker in self._workers and busy and now >= self._deadlines[worker.pid]:
                self._lose(worker, Verdict.TIMEOUT)

    def _read(self, worker: WorkerProcess) -> None:
        index = worker.index
        try:
            verdict = worker.read()
        except EOFError:
            self._lose(worker, Verdict.CRASHED)
            return
        if worker.ready:
            self._failed_starts = 0
        if verdict is not None and index is not None:
            self._verdicts[index] = verdict

    def _lose(self, worker: WorkerProcess, verdict: Verdict) -> None:
        """Kill a worker that is late, broken or gone; its question, if it had one, gets ``verdict``."""
        index, ready = worker.index, worker.ready
        how = self._remove(worker)
        if index is not None:
            self._verdicts[index] = verdict
            _log.debug("%s (%s) on %r", verdict.value, how, self._questions[index])
        if not ready:
            self._failed_starts += 1
            if self._failed_starts == _START_ATTEMPTS:
                raise EnvironmentProblem(
                    f"the workers of reward 'math' do not start ({how})\n"
                    "    try `python -c 'import math_verify'`; if memory_mb is set, raise it"
                )

    def _remove(self, worker: WorkerProcess) -> str:
        self._workers.remove(worker)
        return worker.kill()

    def _report(self) -> None:
        verdicts = list(self._verdicts.values())
        late, lost = verdicts.count(Verdict.TIMEOUT), verdicts.count(Verdict.CRASHED)
        if late or lost:
            _log.warning(
                "reward 'math': of %d verdicts %d took longer than %g s and %d ended with their worker",
                len(verdicts),
                late,
                self._options.timeout_s,
                lost,
            )


def _kill(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() != owner:  # a fork inherits the list, not the processes
        return
    while workers:
        workers.pop().kill()
