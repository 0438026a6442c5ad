"""A rank's shard becomes micro-batches, as many as on the other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from rl_core.batch import SequenceBatch
from rl_torch.microbatch import Layout, MicroBatch, Packing, plan

from rl_backend_fsdp2.mesh import Mesh


@dataclass(frozen=True)
class MicroBatcher:
    """Cuts shards into micro-batches.

    The micro-batch of a shard that is one is remembered: the policy is trained on the tokens that its reference was
    asked for just before.
    """

    max_tokens: int
    packing: Packing
    width_multiple: int = 1
    _last: dict[Packing | Layout, MicroBatch] = field(default_factory=dict, init=False, compare=False, repr=False)

    def micro_batches(
        self, shard: SequenceBatch, mesh: Mesh, *, packing: Packing | Layout | None = None
    ) -> Iterator[tuple[np.ndarray, MicroBatch]]:
        """``(sequence indices, micro-batch)``; equally many on every rank, made up with fillers.

        Args:
            packing: that a model has for itself; None for :attr:`packing`.
        """
        packing = packing or self.packing
        parts = plan(shard, self.max_tokens, packing=packing, device=mesh.device)
        count = mesh.maximum(len(parts))
        whole = len(parts) == 1
        for part in parts:
            if whole and _is_everything(part, shard):
                yield part, self._of_all(shard, packing, mesh)
            else:
                yield part, self._build(shard.select(part), packing, mesh)
        for _ in range(count - len(parts)):
            filler = MicroBatch.filler(mesh.device, packing=packing, width_multiple=self.width_multiple)
            yield np.zeros(0, np.int64), filler

    def _of_all(self, shard: SequenceBatch, packing: Packing | Layout, mesh: Mesh) -> MicroBatch:
        last = self._last.get(packing)
        made = last.of(shard) if last is not None else None
        if made is None:
            made = self._build(shard, packing, mesh)
        self._last[packing] = made
        return made

    def _build(self, batch: SequenceBatch, packing: Packing | Layout, mesh: Mesh) -> MicroBatch:
        return MicroBatch.build(batch, packing=packing, device=mesh.device, width_multiple=self.width_multiple)


def _is_everything(part: np.ndarray, shard: SequenceBatch) -> bool:
    return len(part) == len(shard) and bool((part == np.arange(len(shard))).all())
