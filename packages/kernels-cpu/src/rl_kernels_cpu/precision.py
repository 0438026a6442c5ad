"""The precision of sums."""

from __future__ import annotations

from torch import Tensor, float64


def exact(x: Tensor) -> Tensor:
    """``x`` in float32; float64 stays."""
    return x if x.dtype == float64 else x.float()


def sum_by(index: Tensor, parts: Tensor, count: int) -> Tensor:
    """[C, …] → [count, …]: the sum of those with the same ``index`` (int64 [C]), in the dtype of ``parts``."""
    wide = exact(parts)
    return wide.new_zeros(count, *parts.shape[1:]).index_add_(0, index, wide).to(parts.dtype)
