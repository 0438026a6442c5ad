"""Whitening over a whole step, in the driver."""

from __future__ import annotations

import numpy as np

FLAT_STD = 1e-8
"""Values that spread less than this are equal: what is left is rounding, not signal."""
EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""


def whiten(values: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """``(x - mean) / (std + 1e-6)`` over the values where ``mask`` is non-zero (all, without one).

    The standard deviation has n in the denominator.

    Args:
        values: float, any shape; what it holds where the mask is 0 does not matter.
        mask: of the same shape.

    Returns:
        float32, 0 where the mask is 0, and exactly 0 everywhere if the standard deviation is below 1e-8.
    """
    chosen = np.ones(values.shape, bool) if mask is None else mask != 0
    whitened = np.zeros(values.shape, np.float32)
    selected = values[chosen].astype(np.float64)
    if not len(selected) or selected.std() < FLAT_STD:
        return whitened
    whitened[chosen] = (selected - selected.mean()) / (selected.std() + EPSILON)
    return whitened
