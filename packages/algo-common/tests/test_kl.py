"""The KL between two policies, of arrays and of tensors, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_algo_common.kl import kl_estimate, kl_to_reference
from rl_core.batch import SequenceBatch

KINDS = {"array": lambda *x: np.array(x), "tensor": lambda *x: torch.tensor(x, dtype=torch.float64)}


@pytest.mark.parametrize("kind", KINDS)
def test_estimators_at_a_factor_of_two(kind):
    d = KINDS[kind](math.log(2))
    assert kl_estimate(d, "k1").tolist() == pytest.approx([-0.6931472], abs=1e-7)
    assert kl_estimate(d, "k2").tolist() == pytest.approx([0.2402265], abs=1e-7)
    assert kl_estimate(d, "k3").tolist() == pytest.approx([0.3068528], abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_stay_finite_far_from_the_reference(kind):
    far = KINDS[kind](1e4, -1e4)
    assert kl_estimate(far, "k1").tolist() == [-20.0, 20.0]
    assert kl_estimate(far, "k2").tolist() == [200.0, 200.0]
    assert kl_estimate(far, "k3").tolist() == pytest.approx([math.exp(20) - 21, 19.0], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("estimator", "slope"), [("k1", -1.0), ("k2", 0.5), ("k3", math.expm1(0.5))])
def test_a_tensor_keeps_its_dtype_and_its_gradient(estimator, slope, dtype):
    d = torch.tensor([0.5], dtype=dtype, requires_grad=True)
    kl = kl_estimate(d, estimator)
    kl.sum().backward()
    assert kl.dtype == dtype
    assert d.grad.item() == pytest.approx(slope, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_it_averages_to_the_divergence_of_two_distributions(estimator):
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    exact = float((p * np.log(p / q)).sum())
    assert (p * kl_estimate(np.log(q / p), estimator)).sum() == pytest.approx(exact)


def test_the_kl_of_a_token_that_is_masked_is_zero_whatever_stands_there():
    batch = SequenceBatch.from_lists(
        [[0, 0, 0]],
        token_columns={
            "loss_mask": [np.float32([1, 0, 1])],
            "old_logprobs": [np.float32([-1.0, np.nan, -2.0])],
            "ref_logprobs": [np.float32([-1.0, -3.0, -2.5])],
        },
    )
    kl = kl_to_reference(batch, "k1")
    assert kl.dtype == np.float64
    assert kl.tolist() == [0.0, 0.0, 0.5]
