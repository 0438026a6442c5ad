from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from rl_algo_sft_rm.config import SftConfig
from rl_algo_sft_rm.sft import Sft
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import Role
from rl_core.errors import DataError

ROWS = [
    {"prompt": "ab", "completion": "cd", "__where__": "data.jsonl:1"},
    {"prompt": "abcdefg", "completion": "h", "__where__": "data.jsonl:2"},
    {"prompt": "k", "completion": "abcdefghij", "__where__": "data.jsonl:3"},
]


def sft(**fields) -> Sft:
    return Sft(SftConfig(name="sft", **fields))


def masks(batch: SequenceBatch) -> list[list[float]]:
    return [batch.token_columns["loss_mask"][batch.sequence(i)].tolist() for i in range(len(batch))]


def test_rows_become_sequences_whose_completion_is_trained_on(tools):
    batch = sft().encode(ROWS[:2], tools.CharTokenizer())
    assert batch.lengths.tolist() == [5, 9]
    assert batch.tokens[:5].tolist() == [1, 2, 3, 4, 0]
    assert masks(batch) == [[0, 0, 1, 1, 1], [0] * 7 + [1, 1]]


def test_the_first_token_is_never_trained_on_because_nothing_predicts_it(tools):
    batch = sft(loss_on="all").encode(ROWS[:1], tools.CharTokenizer())
    assert masks(batch) == [[0, 1, 1, 1, 1]]


def test_a_row_that_is_too_long_is_reported_with_its_line(tools):
    with pytest.raises(DataError) as error:
        sft(max_tokens=10).encode(ROWS, tools.CharTokenizer())
    assert str(error.value) == (
        "data.jsonl:3: 12 tokens, but algorithm.max_tokens is 10; "
        "raise it, or set algorithm.on_long_row to truncate or skip"
    )


def test_truncated_rows_are_reported_with_their_line(tools, caplog):
    with caplog.at_level(logging.WARNING, "rl_algo_sft_rm"):
        batch = sft(max_tokens=10, on_long_row="truncate").encode(ROWS, tools.CharTokenizer())
    assert batch.lengths.tolist() == [5, 9, 10]
    assert caplog.messages == [
        "1 row(s) of this batch longer than algorithm.max_tokens 10 truncated; first: data.jsonl:3 with 12 tokens"
    ]


def test_skipped_rows_are_left_out_and_warned_about_once(tools, caplog):
    algorithm = sft(max_tokens=8, on_long_row="skip")
    with caplog.at_level(logging.WARNING, "rl_algo_sft_rm"):
        first = algorithm.encode(ROWS, tools.CharTokenizer())
        second = algorithm.encode(ROWS, tools.CharTokenizer())
    assert first.lengths.tolist() == second.lengths.tolist() == [5]
    assert caplog.messages == [
        "2 row(s) of this batch longer than algorithm.max_tokens 8 skipped; first: data.jsonl:2 with 9 tokens"
    ]


def test_a_batch_of_which_every_row_is_skipped_is_an_error(tools):
    with pytest.raises(DataError) as error:
        sft(max_tokens=2, on_long_row="skip").encode(ROWS, tools.CharTokenizer())
    assert str(error.value) == (
        "all 3 rows of this batch are longer than max_tokens 2 and were skipped; "
        "raise algorithm.max_tokens or set algorithm.on_long_row: truncate"
    )


def test_a_row_truncated_before_its_completion_is_an_error(tools):
    with pytest.raises(DataError) as error:
        sft(max_tokens=6, on_long_row="truncate").encode(ROWS, tools.CharTokenizer())
    assert str(error.value) == (
        "data.jsonl:2: no token to train on, its completion begins after max_tokens; "
        "raise algorithm.max_tokens or set algorithm.on_long_row: skip"
    )


def test_a_step_reports_loss_gradient_norm_and_learning_rate(tools):
    batch = sft().encode(ROWS, tools.CharTokenizer())
    metrics = sft().step(batch, {"policy": tools.TinyModel()})
    assert sorted(metrics) == ["train/grad_norm", "train/learning_rate", "train/loss"]


def test_loss_and_gradient_equal_cross_entropy_on_padded_rows(tools):
    model = tools.TinyModel(learning_rate=0.0, dtype=torch.float64)
    batch = sft(loss_on="all").encode(ROWS, tools.CharTokenizer())
    metrics = sft().step(batch, {"policy": model})
    gradient = model.gradient()

    rows = [torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64)) for i in range(len(batch))]
    inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    scores = model.head(model.gru(model.embedding(inputs))[0])
    expected = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    model.optimizer.zero_grad()
    expected.backward()

    assert metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, model.gradient(), rtol=1e-9, atol=1e-14)


def test_token_weights_may_be_fractional(tools):
    """-(0.5 log p_1 + 1.5 log p_2) / 2 with the log-probs the model itself reports."""
    model = tools.TinyModel(learning_rate=0.0)
    batch = SequenceBatch.from_lists([[3, 1, 2]], token_columns={"loss_mask": [np.array([0, 0.5, 1.5], np.float32)]})
    logprobs = model.forward(batch)["logprobs"]
    expected = -(0.5 * logprobs[1] + 1.5 * logprobs[2]) / 2
    assert sft().step(batch, {"policy": model})["train/loss"] == pytest.approx(expected, rel=1e-6)


def test_the_update_does_not_depend_on_micro_batches(tools):
    results = []
    for max_tokens in (1000, 12, 1):
        model = tools.TinyModel(max_tokens=max_tokens, dtype=torch.float64)
        metrics = sft().step(sft().encode(ROWS, tools.CharTokenizer()), {"policy": model})
        results.append((metrics, model.gradient()))
    for metrics, gradient in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-6)
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-6, atol=1e-12)


def test_a_learning_rate_of_zero_keeps_the_loss_constant(tools):
    model = tools.TinyModel(learning_rate=0.0)
    batch = sft().encode(ROWS, tools.CharTokenizer())
    losses = {sft().step(batch, {"policy": model})["train/loss"] for _ in range(3)}
    assert len(losses) == 1


def test_evaluation_reports_loss_and_perplexity_and_trains_nothing(tools):
    model = tools.TinyModel()
    before = [p.clone() for p in model.parameters]
    metrics = sft().evaluate(sft().encode(ROWS, tools.CharTokenizer()), {"policy": model})
    assert sorted(metrics) == ["eval/loss", "eval/perplexity"]
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(metrics["eval/loss"]))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters, strict=True))


def test_it_learns_three_rows_by_heart(tools):
    model = tools.TinyModel(optimizer="adam", learning_rate=0.02)
    algorithm = sft()
    batch = algorithm.encode(ROWS, tools.CharTokenizer())
    losses = [algorithm.step(batch, {"policy": model})["train/loss"] for _ in range(150)]
    assert losses[0] > 2.0
    assert losses[-1] < 0.1


def test_it_works_with_one_trainable_policy():
    algorithm = sft(sequences_per_step=16, learning_rate=2e-3)
    assert tuple(algorithm.roles()) == (Role("policy", trainable=True),)
    plan = algorithm.plan()
    assert (plan.input, plan.rows_per_step, plan.group_size, plan.optimizer_steps) == ("examples", 16, 1, 1)
    spec = algorithm.optimizer("policy", 2000)
    assert (spec.learning_rate, spec.total_steps) == (2e-3, 2000)
