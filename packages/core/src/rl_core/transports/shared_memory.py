"""Weights through memory that a machine's processes share: where the driver has a line to all workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_core.cluster.workers import WorkerPool
from rl_core.transports.object_store import Lost, ObjectStore, WeightTransport, outcomes

if TYPE_CHECKING:
    from rl_core.model import Model


@dataclass(frozen=True)
class SharedMemory(WeightTransport):
    """Writes the policy's weights once, and has every generator read them there.

    Attributes:
        otherwise: for generators elsewhere.
    """

    pool: WorkerPool
    policy: Model
    otherwise: ObjectStore

    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """See :class:`rl_core.transports.object_store.WeightTransport`."""
        finish = self.begin(generators, version)
        return finish() if finish is not None else self.otherwise.give(generators, version)

    def begin(self, generators: Sequence[Any], version: int) -> Callable[[], Lost] | None:
        """The same, without waiting for the generators: a line keeps the order of calls."""
        if not self.pool.on_lines([*self.pool.trainers, *generators]):
            return None
        shared = self.policy.share_weights()
        calls = self.pool.ask(generators, "call_shared", [("update_weights", shared, version)] * len(generators))

        def finish() -> Lost:
            try:
                return outcomes(self.pool, list(zip(generators, calls, strict=True)))[0]
            finally:
                self.policy.unshare_weights()

        return finish
