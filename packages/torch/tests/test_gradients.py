"""Squared norms are those of float64."""

from __future__ import annotations

import pytest
import torch
from rl_torch.gradients import squared_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_squared_norms_are_those_of_float64(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(3)
    shapes = [(7,), (0,), (3, 5), (1200, 700), (2**18 + 1,)]
    gradients = [torch.randn(shape, generator=draws).to(dtype) for shape in shapes]
    found = squared_norms([*gradients, gradients[3].T])
    expected = torch.stack([g.double().square().sum() for g in [*gradients, gradients[3]]])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol={torch.bfloat16: 2e-2}.get(dtype, 1e-6), atol=0)


def test_of_nothing_there_are_none() -> None:
    assert squared_norms([]).shape == (0,)
