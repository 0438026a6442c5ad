"""The two losses by hand, against plain Python, and over micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_algo_ppo.loss import policy_loss, value_loss
from rl_core.contracts.backend import Scale
from rl_torch.losses import TokenOutputs

OPTIONS = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": None,
    "reduction": "token",
    "constant_length": None,
    "entropy_coefficient": 0.0,
    "mismatch": {"correction": "none", "level": "token", "low": 0.0, "high": 1.0},
}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scale(tokens: float, sequences: float = 1.0) -> Scale:
    return Scale(tokens=tokens, sequences=sequences, units=sequences)


def test_the_value_loss_by_hand(tools):
    values = tensor(1.0, 0.0, 3.0, 9.0).requires_grad_()
    batch = {
        "loss_mask": tensor(1, 1, 1, 0),
        "returns": tensor(2.0, 1.0, 1.0, 0.0),
        "old_values": tensor(0.5, 0.1, 3.0, 0.0),
    }
    loss, metrics = value_loss(tools.value_outputs(values), batch, scale(3), clip=0.2)
    # 1: V = 1 is held at 0.7: max((1-2)², (0.7-2)²) = 1.69, without gradient
    # 2: V = 0 is within 0.1 ± 0.2: (0-1)² = 1;  3: V = V_old: (3-1)² = 4;  4: masked
    assert loss.item() == pytest.approx(0.5 * (1.69 + 1 + 4) / 3)
    assert metrics["value/clip_fraction"].item() == pytest.approx(1 / 3)
    loss.backward()
    assert values.grad.tolist() == pytest.approx([0.0, -1 / 3, 2 / 3, 0.0])


def test_a_clip_that_lowers_the_error_does_not_act(tools):
    # V = 1 went past R = 0.8 from V_old = 0.5: held at 0.7 the error is (0.1)² < (0.2)²
    values = tensor(1.0).requires_grad_()
    batch = {"loss_mask": tensor(1), "returns": tensor(0.8), "old_values": tensor(0.5)}
    loss, metrics = value_loss(tools.value_outputs(values), batch, scale(1), clip=0.2)
    assert loss.item() == pytest.approx(0.5 * 0.04)
    assert metrics["value/clip_fraction"].item() == 0.0


def test_without_a_clip_the_value_loss_is_the_squared_error(tools):
    batch = {"loss_mask": tensor(1, 1), "returns": tensor(2.0, 1.0)}
    loss, metrics = value_loss(tools.value_outputs(tensor(1.0, 3.0)), batch, scale(2), clip=None)
    assert loss.item() == pytest.approx(0.5 * (1 + 4) / 2)
    assert metrics == {}


@pytest.mark.parametrize("seed", range(3))
def test_the_value_loss_and_its_gradient_agree_with_plain_python(tools, seed):
    rng = np.random.default_rng(seed)
    size, clip = 50, 0.3
    values, old, returns = rng.normal(size=(3, size))
    old = values + 0.5 * old
    mask = (rng.random(size) < 0.7).astype(np.float64)
    expected, gradient = 0.0, np.zeros(size)
    for t in np.flatnonzero(mask).tolist():
        held = min(max(values[t], old[t] - clip), old[t] + clip)
        free_error, held_error = (values[t] - returns[t]) ** 2, (held - returns[t]) ** 2
        expected += 0.5 * max(free_error, held_error) / mask.sum()
        if held == values[t] or free_error >= held_error:
            gradient[t] = (values[t] - returns[t]) / mask.sum()
    computed = torch.tensor(values, requires_grad=True)
    columns = {"loss_mask": mask, "returns": returns, "old_values": old}
    loss, _ = value_loss(
        tools.value_outputs(computed),
        {name: torch.from_numpy(column) for name, column in columns.items()},
        scale(mask.sum()),
        clip=clip,
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    np.testing.assert_allclose(computed.grad.numpy(), gradient, atol=1e-12)


def policy_outputs(logprobs: torch.Tensor, entropy: torch.Tensor | None = None) -> TokenOutputs:
    return TokenOutputs(logprobs, entropy, None, None, torch.zeros(len(logprobs), dtype=torch.int64), 1)


def policy_batch(old: torch.Tensor, advantages: torch.Tensor, sampled: torch.Tensor | None = None):
    return {
        "loss_mask": torch.ones_like(old),
        "old_logprobs": old,
        "sampled_logprobs": old if sampled is None else sampled,
        "advantages": advantages,
    }


def test_the_clipped_surrogate_by_hand():
    # A = 1, ρ = 1.5, ε = 0.2: -1.2; A = -1, ρ = 0.5: 0.8; A = -1, ρ = 10, c = 3: 3
    logprobs = torch.log(tensor(1.5, 0.5, 10.0))
    batch = policy_batch(torch.zeros_like(logprobs), tensor(1, -1, -1))
    loss, metrics = policy_loss(policy_outputs(logprobs), batch, scale(3), **{**OPTIONS, "dual_clip": 3.0})
    assert loss.item() == pytest.approx((-1.2 + 0.8 + 3.0) / 3)
    assert metrics["policy/clip_fraction"].item() == pytest.approx(1.0)
    assert metrics["policy/max_ratio"].item() == pytest.approx(10.0)


def test_the_entropy_bonus_lowers_the_loss():
    logprobs = tensor(-1.0, -1.0)
    batch = policy_batch(logprobs, tensor(1, 1))
    entropy = tensor(0.5, 1.5).requires_grad_()
    loss, metrics = policy_loss(
        policy_outputs(logprobs, entropy), batch, scale(2), **{**OPTIONS, "entropy_coefficient": 0.1}
    )
    assert loss.item() == pytest.approx(-1.0 - 0.1 * 1.0)
    assert metrics["policy/entropy"].item() == 1.0
    loss.backward()
    assert entropy.grad.tolist() == pytest.approx([-0.05, -0.05])


def test_an_entropy_that_is_only_measured_leaves_the_loss_alone():
    logprobs = tensor(-1.0, -1.0)
    batch = policy_batch(logprobs, tensor(1, 1))
    loss, metrics = policy_loss(policy_outputs(logprobs, tensor(0.5, 1.5)), batch, scale(2), **OPTIONS)
    assert loss.item() == pytest.approx(-1.0)
    assert metrics["policy/entropy"].item() == 1.0


def test_the_mismatch_is_measured_and_corrected():
    # w = π_old / μ = 4 and 1/2; tis holds it at 2: loss -(2 · 1 + 0.5 · 1) / 2
    old = tensor(-1.0, -1.0)
    batch = policy_batch(old, tensor(1, 1), sampled=old - torch.log(tensor(4.0, 0.5)))
    plain, metrics = policy_loss(policy_outputs(old), batch, scale(2), **OPTIONS)
    assert plain.item() == pytest.approx(-1.0)
    assert metrics["mismatch/mean_w"].item() == pytest.approx(2.25)
    tis = {"correction": "tis", "level": "token", "low": 0.0, "high": 2.0}
    corrected, metrics = policy_loss(policy_outputs(old), batch, scale(2), **{**OPTIONS, "mismatch": tis})
    assert corrected.item() == pytest.approx(-1.25)
    assert "mismatch/masked_fraction" not in metrics
    icepop = {"correction": "icepop", "level": "token", "low": 0.1, "high": 2.0}
    dropped, metrics = policy_loss(policy_outputs(old), batch, scale(2), **{**OPTIONS, "mismatch": icepop})
    assert dropped.item() == pytest.approx(-0.25)
    assert metrics["mismatch/masked_fraction"].item() == pytest.approx(0.5)


def test_without_old_logprobs_the_current_ones_are_the_old_ones():
    logprobs = tensor(-1.0, -2.0).requires_grad_()
    batch = policy_batch(tensor(0, 0), tensor(1, -3), sampled=tensor(-1.0, -2.0))
    del batch["old_logprobs"]
    loss, metrics = policy_loss(policy_outputs(logprobs), batch, scale(2), **OPTIONS)
    assert loss.item() == pytest.approx(1.0)
    assert metrics["policy/max_ratio"].item() == 1.0
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 1.5])
