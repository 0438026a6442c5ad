"""Ranks in processes of their own, joined by gloo, with nothing of Ray between them and the test."""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch
from rl_core.cluster.ports import free_port

LONGEST_JOB = 300.0  # seconds
IMPORTS = [
    "rl_backend_fsdp2.backend",
    "rl_backend_megatron.backend",
    "rl_core.run.pipeline",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
]
"""For all that is forked from the one server of a test process: commands and the probes of memory too."""

multiprocessing.set_forkserver_preload(IMPORTS)


class Ranks:
    """Processes that run functions of importable modules as the ranks of a group; the first ``world`` may do so alone.

    They are forked from one that has imported what most need. They are no daemons, because a checkpoint may be
    written by processes of their own; they end with their pipe.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        self._waiting: list[list[Any]] = []  # the pipes of each job whose results were not asked for yet

    def __call__(self, function: Callable[..., Any], world: int | None = None, **arguments: Any) -> list[Any]:
        """Run ``function(rank, world, port, **arguments)`` on ``world`` ranks (all of them); results by rank."""
        self.start(function, world, **arguments)
        return self.results()

    def start(self, function: Callable[..., Any], world: int | None = None, **arguments: Any) -> None:
        """Begin a job without waiting for it; jobs run one after the other."""
        if not self._processes:
            self._begin()
        world = world or self._count
        port, pipes = free_port(), self._pipes[:world]
        for rank, pipe in enumerate(pipes):
            pipe.send((function, (rank, world, port), arguments))
        self._waiting.append(pipes)

    def results(self) -> list[Any]:
        """What the oldest job returned, by rank. A failed rank leaves the others waiting for it, so all are ended."""
        pipes = self._waiting.pop(0)
        answers: dict[int, Any] = {}
        waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
        while waiting:
            answered = wait(list(waiting), timeout=LONGEST_JOB)
            failures = [] if answered else [f"no answer in {LONGEST_JOB:g} s from ranks {sorted(waiting.values())}"]
            for pipe in answered:
                rank = waiting.pop(pipe)
                try:
                    ok, answers[rank] = pipe.recv()
                except EOFError:
                    ok, answers[rank] = False, f"rank {rank} died"
                if not ok:
                    failures.append(answers[rank])
            if failures:
                self.close()
                raise AssertionError("\n".join(failures))
        return [answers[rank] for rank in range(len(pipes))]

    def close(self) -> None:
        """End the processes; the next job starts others."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.kill()
            process.join(10)
        self._pipes, self._processes, self._waiting = [], [], []

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
    torch.set_num_threads(1)
    gc.freeze()  # a backend collects garbage when it closes: not among all that was imported
    while True:
        try:
            function, place, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*place, **arguments)))
        except Exception:
            pipe.send((False, f"rank {place[0]}: {traceback.format_exc()}"))
