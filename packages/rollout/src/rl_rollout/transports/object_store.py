"""Weights through Ray's object store: any device, any machine, any component."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_core.cluster.pool import WorkerPool
from rl_core.contracts.transport import WeightTransferFailed
from rl_core.errors import WorkerDied

if TYPE_CHECKING:
    from rl_core.model import Model

Lost = list[tuple[Any, WorkerDied]]
"""Generators (actor handles) that died, and why."""


class WeightTransport(ABC):
    """Gives generators the policy's current weights."""

    @abstractmethod
    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """Returns when all that live have the weights as ``version``.

        Raises:
            WorkerDied: a training worker died.
            RLError: a generator refused the weights.
        """


@dataclass(frozen=True)
class StoredWeights(WeightTransport):
    """Weights that are in the object store.

    Attributes:
        buckets: references to :class:`rl_core.contracts.backend.WeightBucket` objects.
        while_sampling: whether generators may be sampling meanwhile.
    """

    pool: WorkerPool
    buckets: Sequence[Any]
    while_sampling: bool = False

    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """See :class:`WeightTransport`."""
        return outcomes(self.pool, updates(generators, self.buckets, version, while_sampling=self.while_sampling))[0]


@dataclass(frozen=True)
class ObjectStore(WeightTransport):
    """Puts the policy's weights into the object store whenever it is asked to hand them over."""

    pool: WorkerPool
    policy: Model
    while_sampling: bool = False

    def give(self, generators: Sequence[Any], version: int) -> Lost:
        """See :class:`WeightTransport`."""
        streams = self.policy.stream_weights()
        # Asked at once, so that no time passes between the weights' being there and their being read.
        calls = updates(generators, streams[0], version, while_sampling=self.while_sampling)
        self.policy.finish_stream(streams)
        return outcomes(self.pool, calls)[0]


def updates(generators: Sequence[Any], buckets: Any, version: int, *, while_sampling: bool) -> list[tuple[Any, Any]]:
    """Ask every generator to take weights; ``(generator, call)`` pairs.

    Args:
        buckets: references to weight buckets, or a reference to a list of them.
        while_sampling: whether the generators may be sampling.
    """
    return [
        (g, g.call_each.remote("update_weights", buckets, version, while_sampling=while_sampling)) for g in generators
    ]


def outcomes(pool: WorkerPool, calls: Sequence[tuple[Any, Any]]) -> tuple[Lost, list[tuple[Any, WeightTransferFailed]]]:
    """Wait for ``(generator, call)`` pairs; the generators that died, and those that have their old weights."""
    what = "updating the generator weights"
    lost: Lost = []
    failed: list[tuple[Any, WeightTransferFailed]] = []
    try:
        pool.get([call for _, call in calls], what=what)  # together: a look at each would cost as much as one at all
        return lost, failed
    except (WorkerDied, WeightTransferFailed):
        pass  # whose was it?
    for generator, call in calls:
        try:
            pool.get([call], what=what)
        except WeightTransferFailed as failure:
            failed.append((generator, failure))
        except WorkerDied as death:
            if death.role == "train":
                raise  # not the generator's death: the call only noticed that of a training worker
            lost.append((generator, death))
    return lost, failed
