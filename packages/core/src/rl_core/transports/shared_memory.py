"""Weights through memory that a machine's processes share: where the driver has a line to all workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_core.cluster.workers import WorkerPool
from rl_core.transports.object_store import Lost, ObjectStore, outcomes

if TYPE_CHECKING:
    from rl_core.model import Model


@dataclass(frozen=True)
class SharedMemory:
    """Writes the policy's weights once, and has every generator read them there.

    Attributes:
        otherwise: for generators elsewhere.
    """

    pool: WorkerPool
    policy: Model
    otherwise: ObjectStore

    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """See :class:`rl_core.transports.object_store.WeightTransport`."""
        if not self.pool.on_lines([*self.pool.trainers, *generators]):
            return self.otherwise.give(generators, version)
        shared = self.policy.share_weights()
        try:
            calls = self.pool.ask(generators, "call_shared", [("update_weights", shared, version)] * len(generators))
            return outcomes(self.pool, list(zip(generators, calls, strict=True)))[0]
        finally:
            self.policy.unshare_weights()
