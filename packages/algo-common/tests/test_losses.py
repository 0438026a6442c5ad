"""The shared pieces of policy-gradient losses, against numbers worked out by hand and padded float64 autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_algo_common.kl import kl_estimate
from rl_algo_common.losses import (
    bounded_exp,
    clipped_surrogate,
    corrected,
    masked,
    maximum,
    mismatch_metrics,
    mismatch_weights,
    reduce_tokens,
    sequence_mean,
    token_mean,
    with_entropy_bonus,
)
from rl_core.contracts.backend import Scale
from rl_torch.losses import TokenOutputs

torch.set_num_threads(1)

LN2 = math.log(2)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def outputs(*ids: int) -> TokenOutputs:
    return TokenOutputs(None, None, None, None, torch.tensor(ids, dtype=torch.int64), max(ids, default=-1) + 1)


def surrogate(advantage: float, ratio: float, **options) -> tuple[float, float]:
    loss, _, clipped = clipped_surrogate(
        tensor(math.log(ratio)), tensor(advantage), **{"clip_low": 0.2, "clip_high": 0.2, **options}
    )
    return loss.item(), clipped.item()


def test_a_ratio_above_the_range_earns_no_more_for_a_good_token():
    assert surrogate(1.0, 1.5) == (pytest.approx(-1.2), 1.0)


def test_a_ratio_below_the_range_earns_no_more_for_a_bad_token():
    assert surrogate(-1.0, 0.5) == (pytest.approx(0.8), 1.0)


def test_a_bad_token_that_became_likelier_is_not_clipped():
    assert surrogate(-1.0, 10.0) == (pytest.approx(10.0), 0.0)


def test_dual_clip_bounds_the_cost_of_a_bad_token():
    assert surrogate(-1.0, 10.0, dual_clip=3.0) == (pytest.approx(3.0), 1.0)


def test_dual_clip_leaves_good_tokens_alone():
    assert surrogate(1.0, 0.1, dual_clip=3.0) == (pytest.approx(-0.1), 0.0)


def test_the_two_clip_ranges_are_separate():
    assert surrogate(1.0, 1.5, clip_high=0.28)[0] == pytest.approx(-1.28)
    assert surrogate(-1.0, 0.5, clip_low=0.4)[0] == pytest.approx(0.6)


def test_clipped_tokens_have_no_gradient():
    log_ratio = tensor(math.log(1.5), 0.0, math.log(0.5)).requires_grad_()
    loss, ratio, clipped = clipped_surrogate(log_ratio, tensor(1.0, 1.0, -1.0), clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert log_ratio.grad.tolist() == [0.0, -1.0, 0.0]
    assert clipped.tolist() == [1.0, 0.0, 1.0]
    assert ratio.tolist() == pytest.approx([1.5, 1.0, 0.5])


def test_a_hopelessly_unlikely_token_keeps_the_loss_finite():
    loss, ratio, _ = clipped_surrogate(tensor(500.0, -500.0), tensor(-1.0, 1.0), clip_low=0.2, clip_high=0.2)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(ratio).all()
    assert bounded_exp(tensor(1e4)).item() == pytest.approx(math.exp(20))


def test_reductions_by_hand():
    # sequences of 1 and 3 tokens, the second with one masked: losses 2 | 3, (9), 5
    per_token, mask = tensor(2, 3, 9, 5), tensor(1, 1, 0, 1)
    scale = Scale(tokens=3.0, sequences=2.0, units=2.0)

    def reduced(reduction: str, constant_length: int | None = None) -> float:
        return reduce_tokens(
            per_token, mask, outputs(0, 1, 1, 1), scale, reduction=reduction, constant_length=constant_length
        ).item()

    assert reduced("token") == pytest.approx((2 + 3 + 5) / 3)
    assert reduced("sequence") == pytest.approx((2 + (3 + 5) / 2) / 2)
    assert reduced("constant", 4) == pytest.approx((2 + 3 + 5) / (2 * 4))


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_a_step_whose_tokens_are_all_masked_has_a_loss_of_zero(reduction):
    per_token = tensor(1.0, 2.0).requires_grad_()
    loss = reduce_tokens(
        per_token,
        tensor(0.0, 0.0),
        outputs(0, 0),
        Scale(tokens=0.0, sequences=1.0, units=1.0),
        reduction=reduction,
        constant_length=4,
    )
    loss.backward()
    assert loss.item() == 0.0
    assert per_token.grad.tolist() == [0.0, 0.0]
    assert token_mean(tensor(1.0), tensor(0.0), Scale(tokens=0.0, sequences=1.0, units=1.0)).item() == 0.0


def test_a_token_mean_ignores_what_is_masked_whatever_stands_there():
    scale = Scale(tokens=4.0, sequences=1.0, units=1.0)  # two of the step's tokens are in another micro-batch
    values = tensor(1.0, float("nan"), 3.0).requires_grad_()
    mean = token_mean(values, tensor(1.0, 0.0, 1.0), scale)
    assert mean.item() == pytest.approx((1 + 3) / 4)
    mean.backward()
    assert values.grad.tolist() == [0.25, 0.0, 0.25]


def test_a_sequence_mean_is_repeated_over_its_tokens():
    mean = sequence_mean(tensor(1, 5, 3, 7, 8), tensor(1, 1, 1, 0, 0), outputs(0, 1, 1, 1, 2))
    assert mean.tolist() == [1.0, 4.0, 4.0, 4.0, 0.0]


def test_mismatch_metrics_by_hand():
    gap = tensor(LN2, 0.0, -math.log(4))
    metrics = mismatch_metrics(gap, tensor(1, 1, 1), Scale(tokens=3.0, sequences=1.0, units=1.0))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "mismatch/mean_w": (2 + 1 + 0.25) / 3,
            "mismatch/kl_k3": ((2 - 1 - LN2) + 0 + (0.25 - 1 + math.log(4))) / 3,
            "mismatch/max_abs_logprob_gap": math.log(4),
        }
    )


# Two sequences: w = 4, 1/2 (product 2, geometric mean √2) and w = 1/4, 1 (product 1/4, geometric mean 1/2).
GAP = (math.log(4), -LN2, -math.log(4), 0.0)


@pytest.mark.parametrize(
    ("correction", "level", "low", "high", "expected"),
    [
        ("none", "token", 0.0, 1.0, [1, 1, 1, 1]),
        ("tis", "token", 0.0, 2.0, [2, 0.5, 0.25, 1]),
        ("tis", "sequence", 0.0, 1.5, [1.5, 1.5, 0.25, 0.25]),
        ("icepop", "token", 0.4, 5.0, [4, 0.5, 0, 1]),
        ("icepop", "token", 0.5, 2.0, [0, 0.5, 0, 1]),
        ("icepop", "sequence", 0.5, 5.0, [2, 2, 0, 0]),
        ("seq-mask", "token", 0.9, 1.5, [1, 1, 0, 0]),
        ("seq-mask", "token", 0.4, 1.4, [0, 0, 1, 1]),
    ],
)
def test_mismatch_corrections_by_hand(correction, level, low, high, expected):
    gap = tensor(*GAP).requires_grad_()
    weights = mismatch_weights(
        gap, tensor(1, 1, 1, 1), outputs(0, 0, 1, 1), correction=correction, level=level, low=low, high=high
    )
    assert weights.tolist() == pytest.approx(expected)
    assert not weights.requires_grad


def test_masked_tokens_have_no_part_in_a_sequences_weight():
    gap, mask = tensor(math.log(4), 0.0), tensor(1, 0)
    weights = mismatch_weights(gap, mask, outputs(0, 0), correction="seq-mask", level="token", low=3.9, high=4.1)
    assert weights.tolist() == [1.0, 1.0]  # the geometric mean is 4, not 2


def test_a_correction_weighs_the_loss_and_reports_what_it_drops():
    gap, mask, scale = tensor(LN2, math.log(8)), tensor(1, 1), Scale(tokens=2.0, sequences=1.0, units=1.0)
    bounds = {"level": "token", "low": 0.5, "high": 4.0}
    plain, metrics = corrected(tensor(1, 10), gap, mask, outputs(0, 0), scale, correction="none", **bounds)
    assert plain.tolist() == [1, 10]
    assert set(metrics) == {"mismatch/mean_w", "mismatch/kl_k3", "mismatch/max_abs_logprob_gap"}
    capped, tis_metrics = corrected(tensor(1, 10), gap, mask, outputs(0, 0), scale, correction="tis", **bounds)
    assert capped.tolist() == pytest.approx([2, 40])
    assert tis_metrics == metrics
    dropped, metrics = corrected(tensor(1, 10), gap, mask, outputs(0, 0), scale, correction="icepop", **bounds)
    assert dropped.tolist() == pytest.approx([2, 0])
    assert metrics["mismatch/masked_fraction"].item() == 0.5


def test_the_entropy_bonus_is_a_token_mean():
    seen = TokenOutputs(None, tensor(4, 2, 6), None, None, torch.tensor([0, 0, 0]), 1)
    mask, scale = tensor(0, 1, 1), Scale(tokens=2.0, sequences=1.0, units=1.0)
    loss, metrics = with_entropy_bonus(tensor(1).sum(), mask, seen, scale, coefficient=0.25)
    assert (loss.item(), metrics["policy/entropy"].item()) == (0.0, 4.0)
    loss, metrics = with_entropy_bonus(tensor(1).sum(), mask, seen, scale, coefficient=0.0)
    assert (loss.item(), metrics["policy/entropy"].item()) == (1.0, 4.0)
    loss, metrics = with_entropy_bonus(tensor(1).sum(), mask, outputs(0, 0, 0), scale, coefficient=0.25)
    assert (loss.item(), metrics) == (1.0, {})


def test_a_mismatch_beyond_all_bounds_stays_finite():
    for level in ("token", "sequence"):
        weights = mismatch_weights(
            tensor(900.0, 900.0), tensor(1, 1), outputs(0, 0), correction="icepop", level=level, low=0.0, high=1e300
        )
        assert torch.isfinite(weights).all()


def test_helpers_accept_a_micro_batch_without_tokens():
    empty = tensor()
    assert maximum(empty).item() == 0.0
    assert maximum(tensor(1.0, 3.0)).item() == 3.0
    assert masked(empty, empty).shape == (0,)
    assert sequence_mean(empty, empty, outputs()).shape == (0,)
    for level in ("token", "sequence"):
        options = {"correction": "icepop", "level": level, "low": 0.5, "high": 5.0}
        assert mismatch_weights(empty, empty, outputs(), **options).shape == (0,)


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_of_a_penalised_surrogate_equals_that_of_padded_matrices(reduction, estimator):
    rng = np.random.default_rng(0)
    lengths = [1, 4, 6]
    width = max(lengths)
    grid = {n: torch.from_numpy(rng.normal(scale=0.4, size=(3, width))) for n in ("new", "old", "ref", "advantage")}
    mask = torch.zeros(3, width, dtype=torch.float64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    mask[2, 1] = 0
    inside = torch.arange(width)[None] < torch.tensor(lengths)[:, None]

    padded = grid["new"].clone().requires_grad_()
    ratio = torch.exp(padded - grid["old"])
    worse = -torch.minimum(grid["advantage"] * ratio, grid["advantage"] * ratio.clip(0.8, 1.3))
    d = grid["ref"] - padded
    per_token = worse + 0.3 * {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - 1 - d}[estimator]
    expected = {
        "token": (per_token * mask).sum() / mask.sum(),
        "sequence": ((per_token * mask).sum(1) / mask.sum(1)).mean(),
        "constant": (per_token * mask).sum() / (3 * 7),
    }[reduction]
    (wanted,) = torch.autograd.grad(expected, padded)

    flat = {name: values[inside] for name, values in grid.items()}
    new = flat["new"].clone().requires_grad_()
    surrogate_loss, _, _ = clipped_surrogate(new - flat["old"], flat["advantage"], clip_low=0.2, clip_high=0.3)
    loss = reduce_tokens(
        surrogate_loss + 0.3 * kl_estimate(flat["ref"] - new, estimator),
        mask[inside],
        outputs(*np.repeat(np.arange(3), lengths).tolist()),
        Scale(tokens=mask.sum().item(), sequences=3.0, units=3.0),
        reduction=reduction,
        constant_length=7,
    )
    (found,) = torch.autograd.grad(loss, new)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(found, wanted[inside], rtol=1e-12, atol=1e-15)
