"""One row without padding: how micro-batches are laid out for :mod:`rl_kernels_cpu.ragged`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_torch.microbatch import MicroBatch, units_of

from rl_kernels_cpu.prefixes import shared_indices
from rl_kernels_cpu.ragged import RaggedRows


@dataclass(frozen=True)
class OneRow:
    """All sequences in one row, and what they have in common at their beginning once."""

    def plan(self, shard: SequenceBatch, max_tokens: int) -> list[np.ndarray]:
        """Units in order, as many as fit: neighbours may begin alike."""
        if 0 < len(shard.tokens) <= max_tokens:
            return [np.arange(len(shard), dtype=np.int64)]
        groups: list[list[np.ndarray]] = []
        tokens = 0
        for unit in units_of(shard):
            size = int(shard.lengths[unit].sum())
            if not groups or tokens + size > max_tokens:
                groups.append([])
                tokens = 0
            groups[-1].append(unit)
            tokens += size
        return [np.concatenate(group) for group in groups]

    def build(self, batch: SequenceBatch, *, device: torch.device, width_multiple: int) -> MicroBatch:
        """Sequences share the positions of a common prefix."""
        indices = shared_indices(batch)
        used = int(indices.max(initial=-1)) + 1
        width = -(-used // width_multiple) * width_multiple
        # Unused positions form one more sequence, so that every position has a slot in attention.
        seen, offsets = np.append(indices, np.arange(used, width)), batch.offsets
        offsets = offsets if width == used else np.append(offsets, len(seen))
        rows = RaggedRows.of(seen, offsets, device=device)
        micro = MicroBatch.at_positions(batch, indices, (1, width), positions=True, device=device)
        return replace(micro, arguments={"rows": rows})
