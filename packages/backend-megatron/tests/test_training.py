"""Training: equal to plain PyTorch in every layout, and independent of layout and micro-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from megatron_helpers import gradients, train
from ranks import Ranks
from rl_torch.engine.testing.examples import (
    WITH_ENTROPY,
    model_folder,
    optimizer_spec,
    plain_loss,
    plain_model,
    plain_training,
    random_batch,
)
from rl_torch.engine.testing.jobs import metrics_of
from rl_torch.optim import learning_rate

STEPS = 5
TP2_PP2 = {"parallel": {"tp": 2, "pp": 2}}


@pytest.mark.parametrize(
    ("world", "parallel", "architecture", "tie"),
    [
        (1, {}, "qwen3", True),
        (2, {"tp": 2}, "qwen3", False),
        (2, {"tp": 2, "sequence": True}, "qwen3", True),
        (2, {"dp": 2}, "qwen3", False),
        (4, {"tp": 2, "pp": 2, "sequence": True}, "qwen3", False),
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


@pytest.mark.parametrize("distributed", [True, False])
def test_bf16_computes_close_to_fp32(ranks: Ranks, distributed: bool) -> None:
    config = {"parallel": {"tp": 2, "dp": 2}, "precision": "bf16", "distributed_optimizer": distributed}
    exact = metrics_of(ranks(train, 1, batch=random_batch()))["loss"]
    rounded = metrics_of(ranks(train, 4, batch=random_batch(), config=config))["loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-2)
