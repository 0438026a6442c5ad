"""A rank's shard becomes micro-batches, as many as on the ranks that it works together with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from rl_core.batch import SequenceBatch

from rl_torch.microbatch import Layout, MicroBatch, Packing, plan


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of a shard; each is made when it is its turn, as often as they are iterated over.

    Attributes:
        parts: the sequences of each, as indices into the shard; empty for fillers.
    """

    parts: tuple[np.ndarray, ...]
    make: Callable[[np.ndarray], MicroBatch]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[MicroBatch]:
        return map(self.make, self.parts)


@dataclass(frozen=True)
class MicroBatcher:
    """Cuts shards into micro-batches.

    The micro-batch of a shard that is one is remembered: the policy is trained on the tokens that its reference was
    asked for just before.

    Attributes:
        max_tokens: of a micro-batch; a unit that is longer gets one of its own.
        agree_on_count: see :meth:`rl_torch.engine.strategy.Strategy.agree_on_count`.
        width_multiple: of the positions in a row.
    """

    max_tokens: int
    device: torch.device
    agree_on_count: Callable[[int], int]
    width_multiple: int = 1
    _last: dict[Packing | Layout, MicroBatch] = field(default_factory=dict, init=False, compare=False, repr=False)

    def cut(self, shard: SequenceBatch, layout: Packing | Layout) -> MicroBatches:
        """The micro-batches of ``shard``, made up with fillers to the number agreed on; a collective."""
        parts = plan(shard, self.max_tokens, packing=layout, device=self.device)
        whole = len(parts) == 1 and _is_everything(parts[0], shard)
        fillers = self.agree_on_count(len(parts)) - len(parts)

        def make(part: np.ndarray) -> MicroBatch:
            if not len(part):
                return MicroBatch.filler(self.device, packing=layout, width_multiple=self.width_multiple)
            return self._of_all(shard, layout) if whole else self._build(shard.select(part), layout)

        return MicroBatches((*parts, *(np.zeros(0, np.int64) for _ in range(fillers))), make)

    def _of_all(self, shard: SequenceBatch, layout: Packing | Layout) -> MicroBatch:
        last = self._last.get(layout)
        made = last.of(shard) if last is not None else None
        if made is None:
            made = self._build(shard, layout)
        self._last[layout] = made
        return made

    def _build(self, batch: SequenceBatch, layout: Packing | Layout) -> MicroBatch:
        return MicroBatch.build(batch, packing=layout, device=self.device, width_multiple=self.width_multiple)


def _is_everything(part: np.ndarray, shard: SequenceBatch) -> bool:
    return len(part) == len(shard) and bool((part == np.arange(len(shard))).all())
