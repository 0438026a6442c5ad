"""Packed sequences as Megatron takes them: all of a micro-batch in a single row, on every device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from rl_core.batch import SequenceBatch
from rl_torch.microbatch import MicroBatch


@dataclass(frozen=True)
class OneRow:
    """The sequences of a micro-batch one after the other, with positions that restart at 0."""

    def plan(self, shard: SequenceBatch, max_tokens: int) -> list[np.ndarray]:
        """Filled to ``max_tokens``."""
        return shard.pack(max_tokens)

    def build(self, batch: SequenceBatch, *, device: torch.device, width_multiple: int) -> MicroBatch:
        """One row, filled up at its end to a multiple of ``width_multiple`` positions."""
        tokens = len(batch.tokens)
        width = -(-tokens // width_multiple) * width_multiple
        return MicroBatch.at_positions(batch, np.arange(tokens), (1, width), positions=True, device=device)


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
