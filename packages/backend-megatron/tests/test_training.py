"""Training: equal to plain PyTorch in every layout, and independent of layout and micro-batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from megatron_helpers import (
    POLICY,
    gradients,
    metrics_of,
    model_folder,
    model_spec,
    optimizer_spec,
    output_ranks,
    plain_loss,
    plain_model,
    plain_training,
    random_batch,
    train,
)
from ranks import Ranks
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import Role
from rl_torch.optim import learning_rate

STEPS = 5
WITH_ENTROPY = LossSpec("megatron_helpers:nll", outputs=("logprobs", "entropy"), temperature=0.7)
TP2_PP2 = {"parallel": {"tp": 2, "pp": 2}}


@pytest.mark.parametrize(
    ("world", "parallel", "architecture", "tie"),
    [
        (1, {}, "qwen3", True),
        (2, {"tp": 2}, "qwen2", True),
        (2, {"tp": 2}, "qwen3", False),
        (2, {"tp": 2, "sequence": True}, "qwen3", True),
        (2, {"pp": 2}, "llama", False),
        (2, {"pp": 2}, "qwen2", True),
        (2, {"dp": 2}, "qwen3", False),
        (4, {"tp": 2, "pp": 2}, "qwen2", True),
        (4, {"tp": 2, "pp": 2, "sequence": True}, "qwen3", False),
        (4, {"tp": 2, "dp": 2}, "llama", True),
        (4, {"pp": 2, "dp": 2}, "qwen2", True),
    ],
)
def test_five_steps_equal_plain_pytorch(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict, architecture: str, tie: bool
) -> None:
    batch, spec = random_batch(), model_folder(tmp_path, architecture=architecture, tie=tie)
    # With the usual eps Adam makes whole steps of gradients that are rounding errors.
    optimizer = optimizer_spec(learning_rate=3e-3, eps=1e-4, schedule="cosine", warmup_steps=2, total_steps=STEPS)
    expected, parameters = plain_training(spec, optimizer, batch, STEPS)
    config = {"parallel": parallel, "max_tokens_per_microbatch": 100}
    answers = ranks(train, world, batch=batch, steps=STEPS, spec=spec, optimizer=optimizer, config=config)
    for step, (loss, norm) in enumerate(expected):
        metrics = metrics_of(answers, step)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5 if step == 0 else 1e-4)
        assert metrics["learning_rate"] == learning_rate(optimizer, step)
        assert metrics["tokens"] == pytest.approx(1.0)
        assert metrics["max_length"] == batch.lengths.max()
    assert set(answers[0]["weights"]) == set(parameters)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(answers[0]["weights"][name], parameter.detach().numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("world", "parallel", "architecture", "tie"),
    [
        (2, {"tp": 2}, "qwen2", True),
        (2, {"tp": 2, "sequence": True}, "qwen3", False),
        (2, {"pp": 2}, "llama", True),
        (2, {"dp": 2}, "qwen3", True),
        (4, {"tp": 2, "pp": 2}, "qwen2", True),
    ],
)
def test_every_gradient_equals_that_of_plain_pytorch(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict, architecture: str, tie: bool
) -> None:
    batch, spec = random_batch(), model_folder(tmp_path, architecture=architecture, tie=tie)
    model = plain_model(spec)
    plain_loss(model, batch).backward()
    config = {"parallel": parallel, "max_tokens_per_microbatch": 100}
    found = ranks(gradients, world, batch=batch, spec=spec, config=config)[0]
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-4, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-6, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def first_step(ranks: Ranks) -> dict[str, float]:
    """Metrics of a step on one rank in one micro-batch."""
    return metrics_of(ranks(train, 1, batch=random_batch(14), loss=WITH_ENTROPY))


@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, {"max_tokens_per_microbatch": 40, "logprob_chunk_tokens": 7}),
        (2, {"parallel": {"dp": 2}, "distributed_optimizer": False}),
        (2, {"parallel": {"pp": 2}, "max_tokens_per_microbatch": 40}),
        (2, {"parallel": {"tp": 2, "sequence": True}, "max_tokens_per_microbatch": 31}),
        (4, {"parallel": {"dp": 2, "pp": 2}, "max_tokens_per_microbatch": 40}),
        (1, {"packing": "packed"}),
        (2, {"parallel": {"pp": 2}, "packing": "packed", "max_tokens_per_microbatch": 70}),
        (2, {"parallel": {"tp": 2, "sequence": True}, "packing": "packed", "max_tokens_per_microbatch": 60}),
        (1, {"activation_checkpointing": True}),
        (4, {"parallel": {"tp": 2, "pp": 2, "sequence": True}, "activation_checkpointing": True, "packing": "packed"}),
    ],
)
def test_loss_and_gradient_do_not_depend_on_layout_or_microbatches(
    ranks: Ranks, first_step: dict[str, float], world: int, config: dict
) -> None:
    answers = ranks(train, world, batch=random_batch(14), loss=WITH_ENTROPY, config=config)
    assert metrics_of(answers) == pytest.approx(first_step, rel=1e-5)


@pytest.mark.parametrize(("pp", "packing"), [(1, "padded"), (2, "padded"), (2, "packed")])
def test_a_rank_without_data_takes_part(ranks: Ranks, pp: int, packing: str) -> None:
    batch = random_batch(2)  # one unit: the second data-parallel rank gets nothing
    expected = ranks(train, 1, batch=batch, steps=2)
    answers = ranks(train, 2 * pp, batch=batch, steps=2, config={"parallel": {"dp": 2, "pp": pp}, "packing": packing})
    assert output_ranks(answers)[1]["results"][0].partial == {"loss": 0.0}
    for step in range(2):
        assert metrics_of(answers, step) == pytest.approx(metrics_of(expected, step), rel=1e-5)


@pytest.mark.parametrize(
    ("world", "config", "poison"),
    [
        (1, {}, math.nan),
        (2, {"parallel": {"dp": 2}}, math.nan),
        (2, {"parallel": {"dp": 2}, "distributed_optimizer": False}, math.inf),
        (4, TP2_PP2, math.inf),
    ],
)
def test_a_loss_that_is_not_finite_on_one_rank_takes_no_step_on_any(
    ranks: Ranks, world: int, config: dict, poison: float
) -> None:
    loss = LossSpec("megatron_helpers:nll", options={"poison": poison})
    answers = ranks(train, world, batch=random_batch(), loss=loss, config=config)
    assert [a["results"][0].finite for a in answers] == [False] * world
    for name, weight in answers[0]["before"].items():
        np.testing.assert_array_equal(answers[0]["weights"][name], weight)


def test_training_twice_gives_the_same_bits(ranks: Ranks) -> None:
    first, second = (ranks(train, 4, batch=random_batch(), steps=3, config=TP2_PP2) for _ in range(2))
    assert [a["results"] for a in first] == [a["results"] for a in second]
    for name, weight in first[0]["weights"].items():
        np.testing.assert_array_equal(second[0]["weights"][name], weight)


@pytest.mark.parametrize(
    ("world", "parallel"), [(2, {"tp": 2}), (2, {"tp": 2, "sequence": True}), (2, {"pp": 2}), (2, {"dp": 2})]
)
def test_a_scalar_head_learns_scores_and_values_as_on_one_rank(ranks: Ranks, world: int, parallel: dict) -> None:
    role, batch, slow = Role("value", trainable=True, head="scalar"), random_batch(), optimizer_spec(learning_rate=3e-3)
    loss = LossSpec("megatron_helpers:squared_scores", outputs=("scores", "values"))
    single, several = (
        ranks(train, n, batch=batch, role=role, loss=loss, steps=6, optimizer=slow, config={"parallel": p})
        for n, p in ((1, {}), (world, parallel))
    )
    losses = [metrics_of(several, step)["loss"] for step in range(6)]
    at_zero = float((batch.sequence_columns["reward"] ** 2).mean()) + 1.0  # a new head says 0 everywhere
    assert losses[0] == pytest.approx(at_zero, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    for step in range(6):
        assert metrics_of(several, step) == pytest.approx(metrics_of(single, step), rel=1e-4)


@pytest.mark.parametrize("distributed", [True, False])
def test_bf16_computes_close_to_fp32(ranks: Ranks, distributed: bool) -> None:
    config = {"parallel": {"tp": 2, "dp": 2}, "precision": "bf16", "distributed_optimizer": distributed}
    exact = metrics_of(ranks(train, 1, batch=random_batch()))["loss"]
    rounded = metrics_of(ranks(train, 4, batch=random_batch(), config=config))["loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize(("world", "config"), [(1, {}), (4, TP2_PP2)])
def test_a_batch_without_anything_to_learn_leaves_a_zero_gradient(ranks: Ranks, world: int, config: dict) -> None:
    batch = random_batch()
    empty = batch.with_columns(token={"loss_mask": np.zeros(len(batch.tokens), np.float32)})
    # The loss divides by the number of masked tokens, which is 0: the quotient is not a number.
    loss = LossSpec("megatron_helpers:nothing")
    result = output_ranks(ranks(train, world, batch=empty, loss=loss, config=config))[0]["results"][0]
    assert (result.finite, result.shared["grad_norm"], result.partial["loss"]) == (True, 0.0, 0.0)


@pytest.mark.parametrize(("world", "config"), [(1, {}), (4, TP2_PP2)])
def test_evaluation_gives_the_training_loss_and_changes_nothing(ranks: Ranks, world: int, config: dict) -> None:
    batch = random_batch()
    idle = ranks(train, world, batch=batch, steps=0, config=config)
    evaluated = output_ranks(idle)[0]["evaluated"].partial
    metrics = metrics_of(ranks(train, world, batch=batch, config=config))
    assert evaluated == pytest.approx({k: v for k, v in metrics.items() if k in evaluated}, rel=1e-6)
    assert output_ranks(idle)[0]["evaluated"].shared == {}
    for name, weight in idle[0]["before"].items():
        np.testing.assert_array_equal(idle[0]["weights"][name], weight)


def test_parameters_are_counted_once_whatever_the_layout(ranks: Ranks) -> None:
    plain = plain_model(model_spec())
    for answer in ranks(train, 4, batch=random_batch(), steps=0, role=POLICY, config=TP2_PP2):
        info = answer["info"]
        assert (info.parameters, info.max_length, info.vocab_size) == (
            sum(p.numel() for p in plain.parameters()),
            128,
            96,
        )
