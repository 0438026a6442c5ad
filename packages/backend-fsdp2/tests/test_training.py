"""Training: independent of ranks, micro-batches and layout, and equal to plain PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fsdp2_helpers import (
    NLL,
    POLICY,
    VOCAB,
    backend,
    model_spec,
    optimizer_spec,
    plain_model,
    random_batch,
    train,
)
from ranks import Ranks
from rl_core.batch import SequenceBatch
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.model import reduce_metrics
from rl_torch.optim import learning_rate

STEPS = 5


def plain_training(
    spec: ModelSpec, optimizer: OptimizerSpec, batch: SequenceBatch, steps: int
) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """The textbook loop: one sequence at a time, full logits, torch's AdamW and clipping."""
    model = plain_model(spec)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps)
    record = []
    for step in range(steps):
        total = torch.zeros(())
        for i in range(len(batch)):
            tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
            mask = torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)])
            log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0], -1)
            total = total - (log_p[:-1].gather(1, tokens[1:, None])[:, 0] * mask[1:]).sum()
        loss = total / float(batch.token_columns["loss_mask"].sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(optimizer, step)
        adamw.step()
        adamw.zero_grad()
        record.append((loss.item(), norm.item()))
    return record, dict(model.named_parameters())


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("tie", [True, False])
def test_five_steps_on_two_ranks_equal_plain_pytorch(pair: Ranks, architecture: str, tie: bool) -> None:
    batch, spec = random_batch(), model_spec(architecture=architecture, tie=tie)
    # Of a gradient of 1e-8 AdamW with an eps of 1e-8 makes a step of half the learning rate, and of its rounding, too.
    optimizer = optimizer_spec(schedule="cosine", warmup_steps=2, total_steps=STEPS, eps=1e-4)
    expected, parameters = plain_training(spec, optimizer, batch, STEPS)
    ranks = pair(train, batch=batch, steps=STEPS, spec=spec, optimizer=optimizer)
    for step, (loss, norm) in enumerate(expected):
        metrics = reduce_metrics([r["results"][step] for r in ranks])
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert metrics["learning_rate"] == learning_rate(optimizer, step)
        assert metrics["tokens"] == pytest.approx(1.0)
        assert metrics["max_length"] == batch.lengths.max()
    assert set(ranks[0]["weights"]) == set(parameters)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(ranks[0]["weights"][name], parameter.detach().numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, {"max_tokens_per_microbatch": 40}),
        (1, {"max_tokens_per_microbatch": 40, "packing": "packed"}),
        (1, {"packing": "packed"}),
        (1, {"kernels": "none", "activation_checkpointing": "selective"}),
        (1, {"packing": "padded", "logprob_chunk_tokens": 7}),
        (1, {"activation_checkpointing": True}),
        (2, {}),
        (2, {"max_tokens_per_microbatch": 40}),
        (2, {"packing": "packed", "max_tokens_per_microbatch": 90}),
        (2, {"packing": "padded", "activation_checkpointing": True}),
    ],
)
def test_loss_and_gradient_do_not_depend_on_ranks_microbatches_or_layout(
    single: Ranks, pair: Ranks, world: int, config: dict
) -> None:
    batch = random_batch(14)
    loss = LossSpec("fsdp2_helpers:nll", outputs=("logprobs", "entropy"), temperature=0.7)
    expected = reduce_metrics([r["results"][0] for r in single(train, batch=batch, loss=loss)])
    ranks = (single if world == 1 else pair)(train, batch=batch, loss=loss, config=config)
    assert reduce_metrics([r["results"][0] for r in ranks]) == pytest.approx(expected, rel=1e-5)


def test_a_rank_without_data_takes_part(single: Ranks, pair: Ranks) -> None:
    batch = random_batch(2)  # one unit: the second rank gets nothing
    expected = single(train, batch=batch, steps=2, config={"max_tokens_per_microbatch": 8})[0]
    ranks = pair(train, batch=batch, steps=2, config={"max_tokens_per_microbatch": 8})
    assert ranks[1]["results"][0].partial == {"loss": 0.0}
    for step in range(2):
        metrics = reduce_metrics([r["results"][step] for r in ranks])
        assert metrics == pytest.approx(reduce_metrics([expected["results"][step]]), rel=1e-5)
    for name, weight in expected["weights"].items():
        np.testing.assert_allclose(ranks[0]["weights"][name], weight, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_on_one_rank_takes_no_step_on_any(
    single: Ranks, pair: Ranks, world: int, poison: float
) -> None:
    loss = LossSpec("fsdp2_helpers:nll", options={"poison": poison})
    ranks = (single if world == 1 else pair)(train, batch=random_batch(), loss=loss)
    assert [r["results"][0].finite for r in ranks] == [False] * world
    for name, weight in ranks[0]["before"].items():
        np.testing.assert_array_equal(ranks[0]["weights"][name], weight)


def test_the_step_after_a_skipped_one_is_as_if_nothing_had_happened() -> None:
    batch = random_batch()
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        expected = made.train("policy", batch, NLL, Scale.of(batch))
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        spoiled = made.train("policy", batch, LossSpec(NLL.function, options={"poison": math.nan}), Scale.of(batch))
        assert not spoiled.finite
        assert made.train("policy", batch, NLL, Scale.of(batch)) == expected


def test_training_twice_gives_the_same_bits(pair: Ranks) -> None:
    first, second = (pair(train, batch=random_batch(), steps=3)[0] for _ in range(2))
    assert first["results"] == second["results"]
    for name, weight in first["weights"].items():
        np.testing.assert_array_equal(second["weights"][name], weight)


@pytest.mark.parametrize("world", [1, 2])
def test_a_scalar_head_learns_scores_and_values(single: Ranks, pair: Ranks, world: int) -> None:
    role, batch = Role("value", trainable=True, head="scalar"), random_batch()
    loss = LossSpec("fsdp2_helpers:squared_scores", outputs=("scores", "values"))
    ranks = (single if world == 1 else pair)(train, batch=batch, role=role, loss=loss, steps=10)
    losses = [reduce_metrics([r["results"][step] for r in ranks])["loss"] for step in range(10)]
    at_zero = float((batch.sequence_columns["reward"] ** 2).mean()) + 1.0  # a new head says 0 everywhere
    assert losses[0] == pytest.approx(at_zero, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("world", [1, 2])
def test_bf16_computes_close_to_fp32_and_keeps_fp32_weights(single: Ranks, pair: Ranks, world: int) -> None:
    ranks = single if world == 1 else pair
    exact, rounded = (ranks(train, batch=random_batch(), config={"precision": p}) for p in ("fp32", "bf16"))
    a, b = (reduce_metrics([r["results"][0] for r in run])["loss"] for run in (exact, rounded))
    assert a != b
    assert b == pytest.approx(a, rel=1e-2)
    assert {w.dtype for w in rounded[0]["weights"].values()} == {np.dtype(np.float32)}


def test_a_batch_without_anything_to_learn_leaves_a_zero_gradient() -> None:
    batch = random_batch()
    empty = batch.with_columns(token={"loss_mask": np.zeros(len(batch.tokens), np.float32)})
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        result = made.train("policy", empty, NLL, Scale.of(batch))
    assert (result.finite, result.shared["grad_norm"], result.partial["loss"]) == (True, 0.0, 0.0)


def test_evaluation_gives_the_training_loss_and_changes_nothing(pair: Ranks) -> None:
    batch = random_batch()
    ranks = pair(train, batch=batch, steps=0)
    trained = pair(train, batch=batch, steps=1)
    evaluated = reduce_metrics([r["evaluated"] for r in ranks])
    metrics = reduce_metrics([r["results"][0] for r in trained])
    assert evaluated == pytest.approx({k: v for k, v in metrics.items() if k in evaluated}, rel=1e-6)
    assert "grad_norm" not in evaluated
    for name, weight in ranks[0]["before"].items():
        np.testing.assert_array_equal(ranks[0]["weights"][name], weight)


def test_a_frozen_role_cannot_be_trained() -> None:
    batch = random_batch()
    with backend(0, 1, free_port()) as made:
        info = made.load(Role("reference", trainable=False), model_spec(), None)
        assert (info.max_length, info.vocab_size) == (128, VOCAB)
        with pytest.raises(ValueError, match="without an optimizer") as caught:
            made.train("reference", batch, NLL, Scale.of(batch))
    assert str(caught.value) == "role 'reference' was loaded without an optimizer, so it cannot be trained"
