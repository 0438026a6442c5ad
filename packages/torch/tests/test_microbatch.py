"""Layouts of micro-batches, and that sequences in a row do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_torch.microbatch import MicroBatch, plan
from rl_torch.models import build_model

torch.set_num_threads(1)


def ragged(lengths: list[int], **columns: np.ndarray) -> SequenceBatch:
    rng = np.random.default_rng(0)
    return SequenceBatch.from_lists([rng.integers(1, 50, n) for n in lengths], sequence_columns=columns)


def model(architecture: str) -> torch.nn.Module:
    init = {"architecture": architecture, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64}
    return build_model(ModelSpec(init=init, vocab_size=50, max_length=512, seed=1), dtype=torch.float32)


def hidden_states(body: torch.nn.Module, micro: MicroBatch) -> torch.Tensor:
    """[T, H] in batch order."""
    with torch.no_grad():
        states = body(micro.input_ids, position_ids=micro.position_ids, use_cache=False).last_hidden_state
    ends = micro.last.numpy() + 1
    flat = states.flatten(0, 1)
    return torch.cat([flat[end - n : end] for end, n in zip(ends, micro.batch.lengths, strict=True)])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_neither_layout_lets_sequences_see_each_other(architecture: str) -> None:
    batch = ragged([100, 1, 60, 5, 5, 120, 33, 2])
    body = model(architecture).base_model
    alone = []
    with torch.no_grad():
        for i in range(len(batch)):
            ids = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))[None]
            alone.append(body(ids, use_cache=False).last_hidden_state[0])
    expected = torch.cat(alone)
    packed, padded = (MicroBatch.build(batch, packing=p) for p in ("packed", "padded"))
    assert packed.input_ids.shape == (3, 128)  # rows share sequences and end in unused positions
    assert padded.input_ids.shape == (8, 120)
    for micro in (packed, padded):
        torch.testing.assert_close(hidden_states(body, micro), expected, rtol=0, atol=2e-5)


def test_packed_positions_restart_and_unused_positions_stay_at_zero() -> None:
    micro = MicroBatch.build(ragged([100, 60, 20]), packing="packed")
    assert micro.position_ids.tolist() == [
        [*range(100), *range(20), *([0] * 0)],
        [*range(60), *([0] * 60)],
    ]


def test_scored_tokens_are_predicted_from_the_position_before_them() -> None:
    batch = SequenceBatch.from_lists(
        [[5, 6, 7], [8, 9]], token_columns={"loss_mask": [np.float32([1, 0, 1]), np.float32([0, 0.5])]}
    )
    micro = MicroBatch.build(batch, packing="padded")
    assert micro.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert micro.position_ids is None
    assert micro.scored.tolist() == [2, 4]
    assert micro.predictors.tolist() == [1, 3]
    assert micro.targets.tolist() == [7, 9]
    assert micro.last.tolist() == [2, 4]
    assert micro.sequence_ids.tolist() == [0, 0, 0, 1, 1]


def test_without_a_loss_mask_every_token_but_the_first_is_scored() -> None:
    assert MicroBatch.build(ragged([3, 2])).scored.tolist() == [1, 2, 4]


@pytest.mark.parametrize(("lengths", "padded"), [([10, 9, 10], True), ([10, 2, 2], False), ([20, 17], True)])
def test_auto_pads_on_cpu_when_little_is_wasted(lengths: list[int], padded: bool) -> None:
    assert (MicroBatch.build(ragged(lengths)).position_ids is None) == padded


def test_auto_packs_into_one_row_on_an_accelerator() -> None:
    micro = MicroBatch.build(ragged([300, 20, 400]), device="meta")
    assert micro.input_ids.shape == (1, 720)


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens") as caught:
        MicroBatch.build(ragged([3, 0]))
    assert str(caught.value) == "sequence 1 of the micro-batch has no tokens"


@pytest.mark.parametrize("packing", ["auto", "packed", "padded"])
@pytest.mark.parametrize("budget", [1, 64, 300, 10**6])
def test_a_plan_covers_every_sequence_once_and_keeps_units_together(packing: str, budget: int) -> None:
    rng = np.random.default_rng(2)
    batch = ragged(list(rng.integers(1, 90, 41)), unit=np.arange(41) // 2)
    parts = plan(batch, budget, packing=packing)
    assert sorted(np.concatenate(parts).tolist()) == list(range(41))
    for part in parts:
        units = set((part // 2).tolist())
        assert {i for i in range(41) if i // 2 in units} == set(part.tolist())
        if len(units) > 1:
            size = len(part) * batch.lengths[part].max() if packing == "padded" else batch.lengths[part].sum()
            assert size <= budget


def test_auto_starts_a_new_micro_batch_rather_than_pad_much() -> None:
    batch = ragged([100] * 20 + [10] * 20)
    # 20 × 100 + 4 × 10 tokens in 24 × 100 positions: 15 % padding; one more would exceed it.
    assert [len(p) for p in plan(batch, 10**6)] == [24, 16]
    assert [len(p) for p in plan(batch, 10**6, packing="padded")] == [40]


def test_missing_micro_batches_are_empty() -> None:
    parts = plan(ragged([4, 4]), 100, at_least=3)
    assert [len(p) for p in parts] == [2, 0, 0]
    assert plan(ragged([]), 100) == []


def test_a_filler_has_something_to_predict() -> None:
    micro = MicroBatch.filler()
    assert micro.is_filler
    assert micro.predictors.tolist() == [0]


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_a_layout_serves_another_batch_of_the_same_tokens(packing: str) -> None:
    first = ragged([5, 9, 3]).with_columns(token={"loss_mask": np.tile([1, 0], 9)[:17].astype(np.float32)})
    made = MicroBatch.build(first, packing=packing)
    second = first.with_columns(token={"advantages": np.arange(17, dtype=np.float32)})
    again, expected = made.of(second), MicroBatch.build(second, packing=packing)
    assert again is not None
    assert again.batch is second
    for name in ("input_ids", "position_ids", "scored", "predictors", "targets", "indices", "last", "sequence_ids"):
        found, wanted = getattr(again, name), getattr(expected, name)
        assert (found is None and wanted is None) or found.equal(wanted), name


def test_other_tokens_masks_or_ends_are_laid_out_anew() -> None:
    mask = np.ones(17, np.float32)
    batch = ragged([5, 9, 3]).with_columns(token={"loss_mask": mask})
    made = MicroBatch.build(batch)
    other = batch.tokens.copy()
    other[-1] += 1
    assert made.of(SequenceBatch(other, batch.offsets, {"loss_mask": mask})) is None
    assert made.of(batch.with_columns(token={"loss_mask": mask * (np.arange(17) > 0)})) is None
    assert made.of(SequenceBatch(batch.tokens, np.array([0, 5, 13, 17]), {"loss_mask": mask})) is None
    assert made.of(SequenceBatch(batch.tokens, batch.offsets)) is None
