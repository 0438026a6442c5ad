"""Data-parallel ranks in processes of their own, joined by gloo, with nothing of Ray between them and the test."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.multiprocessing as mp
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import TrainResult, WorkerContext
from rl_core.contracts.model import OptimizerSpec, Role

LONGEST_JOB = 300.0  # seconds


def take_steps(
    rank: int, world: int, port: int, *, cases: Mapping[str, Any], specs: Mapping[Any, Any], config: Mapping[str, Any]
) -> dict[str, TrainResult]:
    """What this rank's backend reports of each case.

    The learning rate is 0, so that every case finds the weights as they were loaded.

    Args:
        cases: ``head``, ``weights``, ``batch``, ``loss`` and ``scale`` of an optimizer step, by name.
        specs: the model of every head and weights.
        config: fields of the backend's section.
    """
    optimizer = OptimizerSpec(learning_rate=0.0, max_grad_norm=None)
    backend = Fsdp2Backend(Fsdp2Config(name="fsdp2", **config))
    backend.setup(WorkerContext(rank, world, "127.0.0.1", port, threads=1))
    try:
        for head, weights in sorted({(case.head, case.weights) for case in cases.values()}):
            backend.load(Role(f"{head} {weights}", trainable=True, head=head), specs[head, weights], optimizer)
        results = {}
        for name, case in cases.items():
            shard = case.batch.select(case.batch.split_balanced(world)[rank])
            results[name] = backend.train(f"{case.head} {case.weights}", shard, case.loss, case.scale)
        return results
    finally:
        backend.close()


class Ranks:
    """Processes that run functions of importable modules as the ranks of one group, job after job."""

    def __init__(self, world: int) -> None:
        context = mp.get_context("spawn")
        self.world = world
        self._jobs, self._answers, self._processes = [], [], []
        for rank in range(world):
            jobs = context.Queue()  # putting something in does not wait until the process has started
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(rank, world, jobs, theirs), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies ends its answers
            self._jobs.append(jobs)
            self._answers.append(ours)
            self._processes.append(process)

    def start(self, function: Callable[..., Any], **arguments: Any) -> None:
        """Queue ``function(rank, world, port, **arguments)`` on all ranks."""
        port = free_port()
        for jobs in self._jobs:
            jobs.put((function, port, arguments))

    def results(self) -> list[Any]:
        """What the oldest job returned, by rank; a rank that fails ends all of them, since the others wait for it."""
        results: dict[int, Any] = {}
        while len(results) < self.world:
            ready = wait([a for rank, a in enumerate(self._answers) if rank not in results], timeout=LONGEST_JOB)
            if not ready:
                self._fail(f"no answer from a rank for {LONGEST_JOB:g} s")
            for answers in ready:
                rank = self._answers.index(answers)
                try:
                    ok, results[rank] = answers.recv()
                except EOFError:
                    self._fail(f"rank {rank} died")
                if not ok:
                    self._fail(results[rank])
        return [results[rank] for rank in range(self.world)]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process, jobs in zip(self._processes, self._jobs, strict=True):
            process.join(10)
            jobs.cancel_join_thread()  # nobody reads what is left

    def _fail(self, why: str) -> None:
        self.close()
        raise AssertionError(why)


def _serve(rank: int, world: int, jobs: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    while True:
        function, port, arguments = jobs.get()
        try:
            answers.send((True, function(rank, world, port, **arguments)))
        except Exception:
            answers.send((False, f"rank {rank}: {traceback.format_exc()}"))
