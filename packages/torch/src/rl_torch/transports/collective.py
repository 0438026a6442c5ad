"""The ends of the transport ``collective``: buckets are broadcast by NCCL between GPUs, by gloo on the CPU."""

from __future__ import annotations

import torch
from rl_core.contracts.backend import WeightBucket
from rl_core.contracts.generator import Generator
from rl_core.contracts.transport import BucketLayout, WeightGroup, WeightTransferFailed

from rl_torch.transports.buckets import NamedWeights, exhaust, fill, plan_buckets
from rl_torch.transports.group import BroadcastGroup


class _End:
    """Keeps the group it joined last."""

    def __init__(self) -> None:
        self._group: BroadcastGroup | None = None

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            group, self._group = self._group, None
            group.leave()

    def _join(self, group: WeightGroup, rank: int) -> BroadcastGroup:
        if self._group is None or (self._group.spec, self._group.rank) != (group, rank):
            self.close()
            self._group = BroadcastGroup(group, rank)
        return self._group


class Sender(_End):
    """See :class:`rl_core.contracts.transport.CollectiveSender`."""

    def __init__(self, backend: NamedWeights) -> None:
        super().__init__()
        self._backend = backend
        self._plans: dict[str, tuple[BucketLayout, ...]] = {}

    def plan(self, role: str) -> tuple[BucketLayout, ...]:
        """Gathers all parameters once, to see them."""
        self._plans[role] = plan_buckets(self._backend.named_weights(role))
        return self._plans[role]

    def send(self, role: str, group: WeightGroup | None) -> None:
        """Whatever happens, parameters are gathered to the last, because the other ranks do."""
        named = self._backend.named_weights(role)
        try:
            if group is not None:
                joined = self._join(group, 0)
                plan = self._plans[role]
                buffer = torch.empty(max(b.nbytes for b in plan), dtype=torch.uint8, device=group.device)
                for layout in plan:
                    fill(buffer, layout, named)
                    joined.broadcast(buffer[: layout.nbytes])
        except WeightTransferFailed:
            self.close()
            raise
        finally:
            exhaust(named)


class Receiver(_End):
    """See :class:`rl_core.contracts.transport.CollectiveReceiver`.

    Buckets are kept in host memory until all are there: an exchange that breaks off leaves the generator as it was,
    and one that samples takes the weights over between two of its steps.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self._generator = generator

    def receive(self, group: WeightGroup, rank: int, plan: tuple[BucketLayout, ...], version: int) -> None:
        """Receive all buckets, then update the generator."""
        buckets = []
        try:
            joined = self._join(group, rank)
            for layout in plan:
                data = torch.empty(layout.nbytes, dtype=torch.uint8, device=group.device)
                joined.broadcast(data)
                buckets.append(WeightBucket(layout.names, layout.shapes, layout.dtypes, data.cpu().numpy()))
        except WeightTransferFailed:
            self.close()
            raise
        self._generator.update_weights(buckets, version)
