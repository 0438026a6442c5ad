"""Ranks in processes of their own, joined by gloo, with nothing of Ray between them and the test."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import torch
from rl_ray.ports import free_port

LONGEST_JOB = 300.0  # seconds


class Crashed(AssertionError):
    """A rank ended with a segmentation fault."""


@dataclass
class _Job:
    function: Callable[..., Any]
    world: int
    arguments: dict[str, Any]
    pipes: list[Any] = field(default_factory=list)


def in_this_process(function: Callable[..., Any], world: int = 1, **arguments: Any) -> list[Any]:
    """In the place of :class:`Ranks` where one rank is all there is: as quick as it gets, and debuggers stop in it."""
    assert world == 1, "several ranks need processes of their own"
    return [function(0, 1, free_port(), **arguments)]


class Ranks:
    """Processes that run functions of importable modules as the ranks of a group; the first ``world`` may do so alone.

    They are forked from one server of the test process, which imports what
    ``multiprocessing.set_forkserver_preload`` was told. They are no daemons, because a checkpoint may be
    written by processes of their own; they end with their pipe.

    Once in tens of thousands of groups a thread of PyTorch's gloo (``pt_gloo_runloop``) breaks off in ``malloc`` with
    a segmentation fault. A job that ends so is done once more in new processes, with a warning; no other failure is.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        self._jobs: list[_Job] = []  # whose results were not asked for yet

    def __call__(self, function: Callable[..., Any], world: int | None = None, **arguments: Any) -> list[Any]:
        """Run ``function(rank, world, port, **arguments)`` on ``world`` ranks (all of them); results by rank."""
        self.start(function, world, **arguments)
        return self.results()

    def start(self, function: Callable[..., Any], world: int | None = None, **arguments: Any) -> None:
        """Begin a job without waiting for it; jobs run one after the other."""
        self._send(_Job(function, world or self._count, arguments))

    def results(self) -> list[Any]:
        """What the oldest job returned, by rank.

        Raises:
            AssertionError: a rank failed or died, or there is no answer. The others wait for it, so all are ended.
        """
        jobs = self._jobs.copy()
        try:
            return self._answers(self._jobs.pop(0))
        except Crashed as crash:
            warnings.warn(f"{crash}: the job is done once more", stacklevel=2)
            for job in jobs:
                self._send(job)
            return self._answers(self._jobs.pop(0))

    def close(self) -> None:
        """End the processes; the next job starts others."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.kill()
            process.join(10)
        self._pipes, self._processes, self._jobs = [], [], []

    def _send(self, job: _Job) -> None:
        if not self._processes:
            self._begin()
        port, job.pipes = free_port(), self._pipes[: job.world]
        for rank, pipe in enumerate(job.pipes):
            pipe.send((job.function, (rank, job.world, port), job.arguments))
        self._jobs.append(job)

    def _answers(self, job: _Job) -> list[Any]:
        answers: dict[int, Any] = {}
        waiting = {pipe: rank for rank, pipe in enumerate(job.pipes)}
        while waiting:
            answered = wait(list(waiting), timeout=LONGEST_JOB)
            failures = [] if answered else [f"no answer in {LONGEST_JOB:g} s from ranks {sorted(waiting.values())}"]
            failures += self._receive(answered, waiting, answers)
            if failures:  # the ranks that another's death has failed may answer before it is noticed
                failures += self._receive(wait(list(waiting), timeout=1), waiting, answers)
                crashed = any(process.exitcode == -signal.SIGSEGV for process in self._processes)
                self.close()
                raise (Crashed if crashed else AssertionError)("\n".join(failures))
        return [answers[rank] for rank in range(len(job.pipes))]

    def _receive(self, answered: list[Any], waiting: dict[Any, int], answers: dict[int, Any]) -> list[str]:
        """Move what came from ``waiting`` to ``answers``; returns what failed."""
        failures = []
        for pipe in answered:
            rank = waiting.pop(pipe)
            try:
                ok, answers[rank] = pipe.recv()
            except (EOFError, ConnectionResetError):  # reset: jobs that it had not begun
                self._processes[rank].join(10)
                ok, answers[rank] = False, f"rank {rank} died, exit code {self._processes[rank].exitcode}"
            if not ok:
                failures.append(answers[rank])
        return failures

    def _begin(self) -> None:
        context = multiprocessing.get_context("forkserver")
        for _ in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()  # so that a process that dies ends its pipe
            self._pipes.append(ours)
            self._processes.append(process)


def _serve(pipe: Any) -> None:
    faulthandler.enable()  # a crash says where
    torch.set_num_threads(1)
    gc.freeze()  # a backend collects garbage when it closes: not among all that was imported
    while True:
        try:
            function, place, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*place, **arguments)))
        except Exception:  # noqa: BLE001 - the test's process raises it
            pipe.send((False, f"rank {place[0]}: {traceback.format_exc()}"))
