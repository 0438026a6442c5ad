"""Weights through memory that a training rank shares with the generator on its GPU: no copy leaves the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_core.cluster.calls import CHECK_EVERY_S, actor_of
from rl_core.cluster.pool import WorkerPool
from rl_core.contracts.transport import BucketLayout, WeightTransferFailed

from rl_rollout.transports.object_store import Lost, ObjectStore, WeightTransport, outcomes

if TYPE_CHECKING:
    from rl_core.model import Model

logger = logging.getLogger("rl")


@dataclass(frozen=True)
class NextBucket:
    """Called in a generator's process: has the rank on its GPU fill the shared buffer, and waits for that.

    Attributes:
        trainer: the rank's actor.
        sender: reference to its end.
        update: which update this belongs to; the rank passes over calls of a generator that is late or gone.
    """

    trainer: Any
    sender: str
    update: int

    def __call__(self) -> None:
        """Raises what the rank raises, or Ray's error where it died."""
        import ray

        ray.get(self.trainer.transport.remote(self.sender, "next", self.update))


class Ipc(WeightTransport):
    """Each generator reads from the rank on its GPU, bucket by bucket; all ranks gather each bucket together.

    Generators that share no GPU with a rank, or cannot read its memory, get the weights through the object store.

    Args:
        sender, receiver: references to the ends, see :mod:`rl_core.contracts.transport`.
    """

    def __init__(self, pool: WorkerPool, policy: Model, *, sender: str, receiver: str, device: str) -> None:
        self._pool = pool
        self._policy = policy
        self._sender, self._receiver = sender, receiver
        self._device = device
        self._plans: list[tuple[BucketLayout, ...]] = []
        self._update = 0
        self._given_up = False

    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """See :class:`rl_rollout.transports.object_store.WeightTransport`."""
        pairs = [(g, None if self._given_up else self._pool.trainer_on_gpu_of(g)) for g in generators]
        paired = [(g, trainer) for g, trainer in pairs if trainer is not None]
        others = [g for g, trainer in pairs if trainer is None]
        lost: Lost = []
        try:
            lost, failed = self._share(paired, version) if paired else ([], [])
        except WeightTransferFailed as failure:  # of a rank, before it began
            self._on_all("close")
            failed = [(g, failure) for g, _ in paired]
        if failed:
            self._given_up = True
            logger.warning("from now on weights take the object store: %s", failed[0][1])
            others += [g for g, _ in failed]
        return lost + (ObjectStore(self._pool, self._policy).give(others, version) if others else [])

    def _share(self, pairs: list[tuple[Any, Any]], version: int) -> tuple[Lost, list[tuple[Any, WeightTransferFailed]]]:
        role, trainers = self._policy.role.name, self._pool.trainers
        self._update += 1
        if not self._plans:
            self._plans = self._on_all("plan", role)
        buffers = self._on_all("begin", role, self._update, self._device)
        ranks = {trainer: rank for rank, trainer in enumerate(trainers)}
        calls = []
        for generator, trainer in pairs:
            rank = ranks[trainer]
            pull = NextBucket(trainer, self._sender, self._update)
            arguments = ("receive", buffers[rank], pull, self._plans[rank], version)
            calls.append((generator, trainer, generator.transport.remote(self._receiver, *arguments)))
        read = {trainer for _, trainer in pairs}
        finished = [self._finish(t) for t in trainers if t not in read]
        finished += self._finish_in_turn({call: (generator, trainer) for generator, trainer, call in calls})
        self._pool.get(finished, what="sharing weights")
        return outcomes(self._pool, [(generator, call) for generator, _, call in calls])

    def _finish_in_turn(self, reading: dict[Any, tuple[Any, Any]]) -> list[Any]:
        """A rank whose generator is done, or dead, goes on by itself: the other ranks wait for it at every bucket."""
        import ray

        finished, waiting = [], dict(reading)
        started, limit = time.monotonic(), self._pool.deadlines.call_s
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=CHECK_EVERY_S)
            finished += [self._finish(waiting.pop(call)[1]) for call in done]
            if not done:
                self._pool.check()
                if time.monotonic() - started > limit:
                    self._pool.overdue([actor_of(call) for call in waiting], limit, what="reading weights")
        return finished

    def _finish(self, trainer: Any) -> Any:
        return trainer.transport.remote(self._sender, "finish", self._update)

    def _on_all(self, method: str, *args: Any) -> list[Any]:
        calls = [t.transport.remote(self._sender, method, *args) for t in self._pool.trainers]
        return self._pool.get(calls, what="sharing weights")
