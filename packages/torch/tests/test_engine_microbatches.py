"""Shards become micro-batches: remembered where the same tokens come again, and equally many on every rank."""

from __future__ import annotations

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_torch.engine.microbatches import MicroBatcher
from rl_torch.microbatch import MicroBatch, Packing


def batcher_of(max_tokens: int = 100, at_least: int = 0) -> MicroBatcher:
    return MicroBatcher(max_tokens, torch.device("cpu"), agree_on_count=lambda count: max(count, at_least))


def shard(tokens: int = 6, **columns: np.ndarray) -> SequenceBatch:
    rows = [np.arange(1, tokens), np.arange(3, 7)]
    batch = SequenceBatch.from_lists(rows, token_columns={"loss_mask": [np.ones(len(r), np.float32) for r in rows]})
    return batch.with_columns(token=columns)


def made(batcher: MicroBatcher, batch: SequenceBatch, packing: Packing = "packed") -> list[MicroBatch]:
    return list(batcher.cut(batch, packing))


def test_the_micro_batch_of_the_same_tokens_is_used_again_with_the_new_columns() -> None:
    batcher = batcher_of()
    (first,) = made(batcher, shard())
    (second,) = made(batcher, shard(advantages=np.arange(9, dtype=np.float32)))
    assert second.indices is first.indices
    assert second.batch.token_columns["advantages"].tolist() == list(range(9))


def test_a_layout_is_not_used_for_other_tokens_or_another_layout() -> None:
    batcher = batcher_of()
    (first,) = made(batcher, shard())
    (other,) = made(batcher, shard(7))
    assert other.input_ids.tolist() != first.input_ids.tolist()
    (padded,) = made(batcher, shard(7), "padded")
    assert padded.input_ids.shape != other.input_ids.shape
    (again,) = made(batcher, shard(7))
    assert again.indices is other.indices  # each layout has its own


def test_a_shard_of_several_micro_batches_is_made_up_with_fillers() -> None:
    micros = batcher_of(5, at_least=3).cut(shard(), "packed")
    found = list(micros)
    assert [part.tolist() for part in micros.parts] == [[0], [1], []]
    assert [micro.is_filler for micro in found] == [False, False, True]
    assert [len(micro.batch) for micro in found[:2]] == [1, 1]
