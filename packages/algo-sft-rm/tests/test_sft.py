from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_algo_sft_rm.config import SftConfig
from rl_algo_sft_rm.sft import Sft, training_loss
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import Role
from rl_core.errors import DataError
from rl_torch.testing import plain_copy

ROWS = [
    {"prompt": "ab", "completion": "cd", "__where__": "data.jsonl:1"},
    {"prompt": "abcdefg", "completion": "h", "__where__": "data.jsonl:2"},
    {"prompt": "k", "completion": "abcdefghij", "__where__": "data.jsonl:3"},
]


def sft(**fields) -> Sft:
    return Sft(SftConfig(name="sft", **fields))


def predictions(model, batch):
    """``(logits, labels)`` of each sequence."""
    for index, z in enumerate(model.logits(batch)):
        yield z[:-1], torch.from_numpy(batch.tokens[batch.sequence(index)].astype(np.int64))[1:]


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


def test_the_length_limit_of_the_config_applies(tools):
    with pytest.raises(DataError) as error:
        sft(max_tokens=10, on_long_row="error").encode(ROWS, tools.CharTokenizer())
    assert str(error.value).startswith("data.jsonl:3: 12 tokens, more than algorithm.max_tokens 10\n")
    assert sft(max_tokens=10).encode(ROWS, tools.CharTokenizer()).lengths.tolist() == [5, 9]


def test_the_models_length_limits_rows_as_well(tools):
    algorithm = sft()
    record = algorithm.limit_rows(10)
    assert algorithm.encode(ROWS, tools.CharTokenizer()).lengths.tolist() == [5, 9]
    assert record.summary(3) == ("1 of 3 rows is longer than model.max_length 10: skipped; longest 12 (data.jsonl:3)")


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
    """-(0.5 log p_1 + 1.5 log p_2) / 2."""
    model = tools.TinyModel(learning_rate=0.0)
    batch = SequenceBatch.from_lists([[3, 1, 2]], token_columns={"loss_mask": [np.array([0, 0.5, 1.5], np.float32)]})
    log_p = torch.log_softmax(model.logits(batch)[0], -1)
    expected = -(0.5 * log_p[0, 1] + 1.5 * log_p[1, 2]).item() / 2
    assert sft().step(batch, {"policy": model})["train/loss"] == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_and_z_loss_equal_torch_on_padded_rows(tools):
    model = tools.TinyModel(learning_rate=0.0, dtype=torch.float64)
    algorithm = sft(loss_on="all", label_smoothing=0.2, z_loss=0.01)
    batch = algorithm.encode(ROWS, tools.CharTokenizer())
    metrics = algorithm.step(batch, {"policy": model})
    gradient = model.gradient()

    logits, labels = (torch.cat(parts) for parts in zip(*predictions(model, batch), strict=True))
    entropy = torch.nn.functional.cross_entropy
    squares = logits.logsumexp(1).square().mean()
    expected = entropy(logits, labels, label_smoothing=0.2) + 0.01 * squares
    model.optimizer.zero_grad()
    expected.backward()

    assert metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-12)
    assert metrics["train/nll"] == pytest.approx(entropy(logits, labels).item(), rel=1e-12)
    assert metrics["train/z_loss"] == pytest.approx(0.01 * squares.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, model.gradient(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "outputs", "extra"),
    [
        ({}, ("logprobs",), set()),
        ({"label_smoothing": 0.1}, ("logprobs", "mean_logprobs"), {"train/nll"}),
        ({"z_loss": 1e-4}, ("logprobs", "logsumexp"), {"train/nll", "train/z_loss"}),
        (
            {"label_smoothing": 0.1, "z_loss": 1e-4},
            ("logprobs", "mean_logprobs", "logsumexp"),
            {"train/nll", "train/z_loss"},
        ),
    ],
)
def test_only_what_the_options_need_is_asked_of_the_model(tools, options, outputs, extra):
    algorithm = sft(**options)
    assert training_loss(algorithm.config).outputs == outputs
    metrics = algorithm.step(algorithm.encode(ROWS, tools.CharTokenizer()), {"policy": tools.TinyModel()})
    assert set(metrics) == {"train/loss", "train/grad_norm", "train/learning_rate"} | extra


def test_the_backend_computes_the_smoothed_loss_in_any_micro_batches(characters, local_model):
    algorithm = sft(label_smoothing=0.2, z_loss=0.01)
    tokenizer = characters(ROWS)
    batch = algorithm.encode(ROWS, tokenizer)
    results = []
    for fields in ({}, {"max_tokens_per_microbatch": 12}, {"packing": "packed", "logprob_chunk_tokens": 3}):
        model = local_model(Role("policy", trainable=True), tokenizer, **fields)
        if not results:
            plain = plain_copy(model.backend.role("policy").model.hf)
            found = [plain(torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))[None]) for i in range(3)]
            trained = [torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)])[1:] > 0 for i in range(3)]
            logits = torch.cat([f.logits[0, :-1][t] for f, t in zip(found, trained, strict=True)])
            labels = torch.from_numpy(batch.tokens[batch.token_columns["loss_mask"] > 0].astype(np.int64))
            smooth = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
            expected = smooth + 0.01 * logits.logsumexp(1).square().mean()
        results.append(algorithm.step(batch, {"policy": model}))
    assert results[0]["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


def test_the_update_does_not_depend_on_micro_batches(tools):
    results = []
    for max_tokens in (1000, 12, 1):
        model = tools.TinyModel(max_tokens=max_tokens, dtype=torch.float64)
        metrics = sft().step(sft().encode(ROWS, tools.CharTokenizer()), {"policy": model})
        results.append((metrics, model.gradient()))
    for metrics, gradient in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-6)
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-6, atol=1e-12)


def test_the_smoothed_update_does_not_depend_on_micro_batches(tools):
    algorithm, results = sft(label_smoothing=0.1, z_loss=0.1), []
    for max_tokens in (1000, 1):
        model = tools.TinyModel(max_tokens=max_tokens, dtype=torch.float64)
        metrics = algorithm.step(algorithm.encode(ROWS, tools.CharTokenizer()), {"policy": model})
        results.append((metrics, model.gradient()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-6, atol=1e-12)


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


def test_held_out_loss_is_the_plain_likelihood_whatever_is_trained_with(tools):
    model, batch = tools.TinyModel(), sft().encode(ROWS, tools.CharTokenizer())
    plain = sft().evaluate(batch, {"policy": model})
    assert sft(label_smoothing=0.5, z_loss=1.0).evaluate(batch, {"policy": model}) == plain


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
