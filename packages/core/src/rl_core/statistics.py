"""Statistics of whole steps that algorithms compute in the driver, in numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np

KlEstimator = Literal["k1", "k2", "k3"]

FLAT_STD = 1e-8
"""Values that spread less than this are equal: what is left is rounding, not signal."""
EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""
LARGEST_EXPONENT = 20.0
"""Log-ratios are held within ± this before ``exp``."""


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


def kl_estimate(d: np.ndarray, estimator: KlEstimator) -> np.ndarray:
    """KL from samples of the first distribution (Schulman 2020, "Approximating KL divergence").

    With d = log q - log p at samples of p: ``k1 = -d``, ``k2 = d²/2``, ``k3 = e^d - 1 - d``.

    Args:
        d: float, log-prob of the second distribution minus that of the first; held within ±20.

    Returns:
        float64, of d's shape.
    """
    d = np.clip(d.astype(np.float64), -LARGEST_EXPONENT, LARGEST_EXPONENT)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return np.square(d) / 2
    return np.expm1(d) - d
