"""Weights by broadcast, in a process group of the first training rank and all generators."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rl_core.cluster.pool import WorkerPool
from rl_core.contracts.transport import BucketLayout, WeightGroup, WeightTransferFailed
from rl_core.errors import EnvironmentProblem

from rl_rollout.transports.object_store import Lost, ObjectStore, WeightTransport, outcomes

if TYPE_CHECKING:
    from rl_core.model import Model

logger = logging.getLogger("rl")

ATTEMPTS = 2
"""Groups that are tried for one update before it, and all later ones, take the object store."""


class Collective(WeightTransport):
    """A group lasts as long as the same generators live; each change of theirs makes another one.

    A generator that joins a run gets its first weights through the object store, and is in the group of the next
    update. One that dies during an update ends the exchange at once (or, where nothing shows its death, after
    ``run.heartbeat_timeout``); the others keep their old weights until the exchange is repeated without it.

    Args:
        sender, receiver: references to the ends, see :mod:`rl_core.contracts.transport`.
        while_sampling: whether generators may be sampling meanwhile.
    """

    def __init__(
        self, pool: WorkerPool, policy: Model, *, sender: str, receiver: str, device: str, while_sampling: bool = False
    ) -> None:
        self._pool = pool
        self._policy = policy
        self._sender, self._receiver = sender, receiver
        self._device = device
        self._while_sampling = while_sampling
        self._plan: tuple[BucketLayout, ...] = ()
        self._group: tuple[WeightGroup, list[Any]] | None = None
        self._given_up = False

    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """See :class:`rl_rollout.transports.object_store.WeightTransport`."""
        lost: Lost = []
        for _ in range(0 if self._given_up else ATTEMPTS):
            alive = [g for g in generators if all(g is not gone for gone, _ in lost)]
            if not alive:
                return lost
            try:
                group = self._group_of(alive)
            except EnvironmentProblem as problem:
                logger.warning("no group for weights with %d generators: %s", len(alive), problem)
                break
            died, failure = self._exchange(group, alive, version)
            lost += died
            if died or failure is not None:
                self._group = None
            if failure is None:
                return lost
            logger.warning("an exchange of weights with %d generators broke off: %s", len(alive), failure)
        alive = [g for g in generators if all(g is not gone for gone, _ in lost)]
        if not self._given_up:
            self._given_up = True
            logger.warning("from now on weights take the object store")
        return lost + ObjectStore(self._pool, self._policy, self._while_sampling).give(alive, version)

    def _group_of(self, generators: list[Any]) -> WeightGroup:
        if self._group is not None and same(self._group[1], generators):
            return self._group[0]
        trainers = self._pool.trainers
        if not self._plan:
            plans = [t.transport.remote(self._sender, "plan", self._policy.role.name) for t in trainers]
            self._plan = self._pool.get(plans, what="planning the exchange of weights")[0]
        place = self._pool.rendezvous_point([trainers[0], *generators], purpose="weights")
        group = WeightGroup(
            address=place.address,
            port=place.port,
            size=1 + len(generators),
            device=self._device,
            timeout_s=self._pool.deadlines.heartbeat_s,
            rendezvous=place,
        )
        self._group = group, generators
        return group

    def _exchange(
        self, group: WeightGroup, generators: list[Any], version: int
    ) -> tuple[Lost, WeightTransferFailed | None]:
        """Those that died, and why it is to be repeated, if it is."""
        sends = [
            t.transport.remote(self._sender, "send", self._policy.role.name, group if rank == 0 else None)
            for rank, t in enumerate(self._pool.trainers)
        ]
        receives = [
            g.transport.remote(
                self._receiver, "receive", group, rank, self._plan, version, while_sampling=self._while_sampling
            )
            for rank, g in enumerate(generators, start=1)
        ]
        lost, failed = outcomes(self._pool, list(zip(generators, receives, strict=True)))
        try:
            self._pool.get(sends, what="sending weights")
        except WeightTransferFailed as failure:
            return lost, failure
        return lost, failed[0][1] if failed else None


def same(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether both are the same generators in the same order."""
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
