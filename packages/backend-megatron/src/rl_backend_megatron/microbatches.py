"""Shards become micro-batches: one sequence per row, or all of them one after the other in a single row.

Row lengths are a multiple of what sequence parallelism splits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from rl_core.batch import SequenceBatch
from rl_torch.microbatch import MicroBatch, plan
from torch import Tensor


@dataclass(frozen=True)
class MicroBatcher:
    """Cuts shards into micro-batches.

    Attributes:
        max_tokens: positions (padding included) of a micro-batch.
        multiple: row lengths are rounded up to a multiple of this.
        packing: ``packed`` puts all sequences of a micro-batch into one row, ``padded`` each into its own.
    """

    max_tokens: int
    multiple: int = 1
    packing: Literal["packed", "padded"] = "padded"

    def micro_batches(
        self, shard: SequenceBatch, device: torch.device, *, agree: Callable[[int], int]
    ) -> list[tuple[np.ndarray, MicroBatch]]:
        """``(sequence indices, micro-batch)``, at least one: a filler where the shard is empty.

        The order is the same on all ranks with this shard.

        Args:
            agree: how many there shall be, given how many there are; the rest are fillers without sequences.
        """
        parts = plan(shard, self.max_tokens, packing=self.packing, device=device)
        made = [(p, MicroBatch.build(shard.select(p), packing="padded", device=device)) for p in parts]
        if self.packing == "packed":
            made = [(p, pack(micro)) for p, micro in made]
        fillers = agree(max(1, len(made))) - len(made)
        made += [(np.zeros(0, np.int64), MicroBatch.filler(device)) for _ in range(fillers)]
        return [(part, widen(micro, self.multiple)) for part, micro in made]


def pack(micro: MicroBatch) -> MicroBatch:
    """``micro``, which has a sequence per row, with its sequences one after the other; positions restart at 0."""
    device, width = micro.input_ids.device, micro.input_ids.shape[1]
    offsets = torch.from_numpy(micro.batch.offsets).to(device)

    def moved(indices: Tensor) -> Tensor:
        return offsets[indices // width] + indices % width

    positions = torch.arange(len(micro.sequence_ids), device=device) - offsets[micro.sequence_ids]
    rows = micro.sequence_ids * width + positions
    return replace(
        micro,
        input_ids=micro.input_ids.flatten()[rows][None],
        position_ids=positions[None],
        predictors=moved(micro.predictors),
        indices=moved(micro.indices),
        last=moved(micro.last),
    )


def widen(micro: MicroBatch, multiple: int) -> MicroBatch:
    """``micro`` with its rows padded at the right to a multiple of ``multiple`` positions."""
    width = micro.input_ids.shape[1]
    wider = -(-width // multiple) * multiple
    if wider == width:
        return micro

    def moved(indices: Tensor) -> Tensor:
        return indices // width * wider + indices % width

    def padded(ids: Tensor) -> Tensor:
        return torch.nn.functional.pad(ids, (0, wider - width))

    return replace(
        micro,
        input_ids=padded(micro.input_ids),
        position_ids=None if micro.position_ids is None else padded(micro.position_ids),
        predictors=moved(micro.predictors),
        indices=moved(micro.indices),
        last=moved(micro.last),
    )


def packed_sequences(micro: MicroBatch) -> PackedSeqParams | None:
    """Where the sequences of a packed row begin and end, padding being one more; None for padded rows."""
    if micro.position_ids is None:
        return None
    width, bounds = micro.input_ids.shape[1], micro.batch.offsets.astype(np.int32)
    if bounds[-1] < width:
        bounds = np.append(bounds, np.int32(width))
    ends = torch.from_numpy(bounds).to(micro.input_ids.device)
    longest = int(np.diff(bounds).max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest
    )
