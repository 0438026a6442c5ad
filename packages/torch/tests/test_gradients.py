"""Squared norms are those of float64."""

from __future__ import annotations

import pytest
import torch
from rl_torch.gradients import squared_norms

TOLERANCE = {
    # A sum of m terms, one after another, is off by about sqrt(m) units of rounding (Higham & Mary 2019). A product of
    # 2^18 elements has at least 4 such sums, of 2^16 terms and independent: sqrt(2^16) / sqrt(4) units. PyTorch's own
    # norm, of all 840,000 elements, is off by 1.7e-5 and more.
    torch.float32: 2**8 / 2 * 2**-24,
    torch.bfloat16: 2 * 2**-8 + 2**-16,  # the norm is rounded to 8 bits, the square is off twice as much
    torch.float64: 840_000 * 2**-53,  # whatever the order of the additions
}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_squared_norms_are_those_of_float64(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(3)
    shapes = [(7,), (0,), (3, 5), (1200, 700), (2**18 + 1,)]
    gradients = [torch.randn(shape, generator=draws).to(dtype) for shape in shapes]
    found = squared_norms([*gradients, gradients[3].T])
    expected = torch.stack([g.double().square().sum() for g in [*gradients, gradients[3]]])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=0)


def test_of_nothing_there_are_none() -> None:
    assert squared_norms([]).shape == (0,)
