"""An optimizer step without the sequences that have no gradient is the same step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, TrainResult
from rl_core.contracts.model import ModelInfo, Role
from rl_core.model import Model
from rl_core.zero_gradient import has_gradient, without_zero_gradient

LOSS = LossSpec("package.module:loss", zero_where="advantages")


def batch_of(masks, advantages, **sequence) -> SequenceBatch:
    return SequenceBatch.from_lists(
        [np.zeros(len(mask), np.int32) for mask in masks],
        token_columns={"loss_mask": [np.float32(m) for m in masks], "advantages": [np.float32(a) for a in advantages]},
        sequence_columns=sequence,
    )


MASKS = [[0, 1, 1], [0, 1], [0, 0, 0], [0, 1, 0], []]
ADVANTAGES = [[0, 0, 0], [0, -0.5], [9, 9, 9], [0, 0, 9], []]
BATCH = batch_of(MASKS, ADVANTAGES)


def test_a_sequence_has_a_gradient_if_a_token_in_the_mask_is_not_zero_in_the_column():
    assert has_gradient(BATCH, "advantages").tolist() == [False, True, False, False, False]
    assert has_gradient(BATCH, "loss_mask").tolist() == [True, True, False, True, False]
    unmasked = SequenceBatch(BATCH.tokens, BATCH.offsets, {"advantages": BATCH.token_columns["advantages"]})
    assert has_gradient(unmasked, "advantages").tolist() == [False, True, True, True, False]


def test_the_scale_stays_that_of_the_whole_step():
    part, scale, metrics = without_zero_gradient(BATCH, LOSS, Scale.of(BATCH))
    assert (len(part), part.token_columns["advantages"].tolist()) == (1, [0.0, -0.5])
    assert (scale.tokens, scale.sequences, scale.units) == (4.0, 5.0, 5.0)
    assert (scale.skipped_tokens, scale.measured_tokens) == (3.0, 1.0)
    assert metrics == {"skipped_sequences_fraction": 0.8}


def test_a_loss_that_names_no_column_is_computed_on_everything():
    whole = Scale.of(BATCH)
    assert without_zero_gradient(BATCH, replace(LOSS, zero_where=None), whole) == (BATCH, whole, {})


def test_with_a_loss_of_the_models_own_everything_is_computed_on():
    part, scale, metrics = without_zero_gradient(BATCH, LOSS, Scale.of(BATCH), auxiliary_loss=True)
    assert (part, scale, metrics) == (BATCH, Scale.of(BATCH), {"skipped_sequences_fraction": 0.0})


@pytest.mark.parametrize(("rows", "kept"), [([2, 0, 3], [0, 1, 1]), ([2, 4], [])])
def test_of_a_step_without_gradient_the_shortest_completion_is_left(rows, kept):
    part, scale, _ = without_zero_gradient(BATCH.select(rows), LOSS, Scale.of(BATCH.select(rows)))
    assert part.token_columns["loss_mask"].tolist() == kept
    assert scale.measured_tokens == sum(kept)


def test_the_sequences_of_a_unit_stay_together():
    pairs = batch_of([[0, 1]] * 6, [[0, 0], [0, 0], [0, 0], [0, 3], [0, 0], [0, 0]], unit=np.int64([7, 7, 5, 9, 9, 5]))
    part, _, metrics = without_zero_gradient(pairs, LOSS, Scale.of(pairs))
    assert part.sequence_columns["unit"].tolist() == [9, 9]
    assert metrics == {"skipped_sequences_fraction": pytest.approx(4 / 6)}


class Rank:
    """Answers at once, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    @property
    def call(self):
        return self

    def remote(self, method, role, shard, loss, scale):
        self.asked.append((method, len(shard), scale))
        return TrainResult(partial={"loss": 0.25}, shared={"grad_norm": 1.0, "learning_rate": 0.1}, finite=True)


class Pool:
    def get(self, answers, *, what=""):
        return list(answers)


@pytest.mark.parametrize("auxiliary_loss", [False, True])
def test_a_model_trains_its_ranks_on_what_has_a_gradient_and_evaluates_everything(auxiliary_loss):
    ranks = [Rank(), Rank()]
    info = ModelInfo(parameters=1, max_length=0, vocab_size=8, auxiliary_loss=auxiliary_loss)
    topology = [Topology(dp_rank=rank, dp_size=2) for rank in range(2)]
    model = Model(Role("policy", trainable=True), info=info, pool=Pool(), workers=ranks, topology=topology)
    batch = batch_of([[0, 1]] * 8, [[0, n % 4] for n in range(8)])
    metrics = model.train(batch, LOSS)
    model.evaluate(batch, LOSS)
    scale = Scale(tokens=8.0, sequences=8.0, units=8.0)
    trained = ("train", 4, scale) if auxiliary_loss else ("train", 3, replace(scale, skipped_tokens=2.0))
    assert [rank.asked for rank in ranks] == [[trained, ("evaluate", 4, scale)]] * 2
    assert metrics == {
        "loss": 0.5,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "skipped_sequences_fraction": 0.0 if auxiliary_loss else 0.25,
    }
