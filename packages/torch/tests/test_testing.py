"""The in-process model does what a real backend's does."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from rl_core.algorithm import sampling_temperature
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec
from rl_torch.logprobs import token_outputs
from rl_torch.testing import (
    GruModel,
    PreciseBatch,
    columns_of,
    outputs_from_logits,
    outputs_of,
    with_sampled_logprobs,
)

torch.set_num_threads(1)

NAMES = ("logprobs", "entropy", "mean_logprobs", "logsumexp")
LOSS = LossSpec("rl_torch_test_losses:nll", outputs=("logprobs", "entropy"), temperature=0.5)


@pytest.fixture
def batch() -> SequenceBatch:
    rng = np.random.default_rng(0)
    lengths = [4, 2, 7]
    return SequenceBatch.from_lists(
        [rng.integers(0, 12, n) for n in lengths],
        token_columns={"loss_mask": [(np.arange(n) >= 1 + n // 4).astype(np.float32) for n in lengths]},
        sequence_columns={"group": np.array([3, 3, 5], np.int32), "target": np.array([1 / 3, 0.5, 2.0])},
    )


@pytest.fixture(autouse=True)
def losses(monkeypatch):
    """A module that a ``LossSpec`` can name."""

    def nll(outputs, batch, scale):
        entropy = (outputs.entropy * batch.loss_mask).sum() / scale.tokens
        lowest = (outputs.logprobs * batch.loss_mask).min().detach()
        return -(outputs.logprobs * batch.loss_mask).sum() / scale.tokens, {"entropy": entropy, "min_logprob": lowest}

    module = ModuleType("rl_torch_test_losses")
    module.nll = nll
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_outputs_from_logits_are_those_of_the_real_projection(batch):
    rng = np.random.default_rng(1)
    logits = [torch.tensor(rng.normal(size=(n, 12)), dtype=torch.float32) for n in batch.lengths]
    computed = outputs_from_logits(logits, batch, NAMES, temperature=0.7)
    predictors = torch.cat([scores[:-1] for scores in logits])
    targets = torch.from_numpy(np.concatenate([batch.tokens[batch.sequence(i)][1:] for i in range(3)]).astype(np.int64))
    expected = token_outputs(predictors, torch.eye(12), targets, outputs=NAMES, temperature=0.7)
    first = torch.zeros(len(batch.tokens), dtype=torch.bool)
    first[batch.offsets[:-1]] = True
    for name in NAMES:
        torch.testing.assert_close(getattr(computed, name)[~first], expected[name], rtol=1e-5, atol=1e-6)
        assert not getattr(computed, name)[first].any()


def test_outputs_that_were_not_asked_for_are_none(batch):
    computed = outputs_of(batch, values=torch.arange(13.0))
    assert computed.logprobs is computed.entropy is computed.scores is None
    assert computed.sum_per_sequence(computed.values).tolist() == [6.0, 9.0, 63.0]


def test_columns_keep_the_precision_asked_for(batch):
    assert columns_of(batch)["target"].tolist() == [1 / 3, 0.5, 2.0]
    assert columns_of(batch, torch.float32)["target"].dtype == torch.float32
    assert set(columns_of(batch)) == {"loss_mask", "group", "target"}
    precise = PreciseBatch(batch, torch.float64)
    assert (precise.target.dtype, precise.group.dtype, precise.tokens.dtype) == (
        torch.float64,
        torch.int64,
        torch.int64,
    )


def test_forward_is_float32_and_0_outside_the_mask(batch):
    model = GruModel(dtype=torch.float64)
    result = model.forward(batch, ("logprobs", "entropy"), temperature=0.5)
    mask = batch.token_columns["loss_mask"] != 0
    assert all(array.dtype == np.float32 for array in result.values())
    assert all(((array != 0) == mask).all() for array in result.values())
    assert model.calls == ["forward logprobs entropy"]


def test_sgd_moves_the_weights_by_the_gradient(batch):
    model = GruModel(learning_rate=0.5, dtype=torch.float64)
    before = model.weights()
    metrics = model.train(batch, LOSS)
    np.testing.assert_allclose(model.weights(), before - 0.5 * model.gradient(), rtol=1e-12)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(model.gradient()))
    assert set(metrics) == {"loss", "entropy", "min_logprob", "grad_norm", "learning_rate"}
    assert metrics["learning_rate"] == 0.5


def test_results_do_not_depend_on_the_micro_batches(batch):
    whole, split = (GruModel(max_tokens=n, dtype=torch.float64) for n in (10_000, 7))
    assert split.train(batch, LOSS) == pytest.approx(whole.train(batch, LOSS), rel=1e-12)
    np.testing.assert_allclose(split.gradient(), whole.gradient(), rtol=1e-9, atol=1e-14)


def test_evaluating_changes_nothing(batch):
    model = GruModel(optimizer="adam", dtype=torch.float64)
    before = model.weights()
    first = model.evaluate(batch, LOSS)
    assert (model.weights() == before).all()
    trained = model.train(batch, LOSS)
    assert first == pytest.approx({name: trained[name] for name in first})
    assert model.evaluate(batch, LOSS)["loss"] < first["loss"]
    assert model.calls == ["evaluate", "train", "evaluate"]


def test_the_weights_come_from_the_seed():
    assert (GruModel().weights() == GruModel().weights()).all()
    assert (GruModel().weights() != GruModel(seed=1).weights()).any()


def test_sampled_logprobs_are_near_the_policys_at_the_sampling_temperature(batch):
    batch = batch.with_columns(sequence={"temperature": np.full(3, 0.5, np.float32)})
    model = GruModel()
    exact = model.forward(batch, temperature=sampling_temperature(batch))["logprobs"]
    sampled = with_sampled_logprobs(batch, model, np.random.default_rng(0), noise=1e-3).token_columns
    assert 1e-5 < np.abs(sampled["sampled_logprobs"] - exact).max() < 1e-2
    assert not sampled["sampled_logprobs"][sampled["loss_mask"] == 0].any()
    assert model.calls == []
