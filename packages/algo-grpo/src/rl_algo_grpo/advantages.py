"""Advantages of completions relative to the other completions of the same prompt."""

from __future__ import annotations

from typing import Literal

import numpy as np

AdvantageScale = Literal["std", "none", "batch"]

FLAT_STD = 1e-8
"""A group whose rewards spread less than this has advantage 0: what is left is rounding, not signal."""
_EPSILON = 1e-6


def group_advantages(
    rewards: np.ndarray, groups: np.ndarray, *, scale: AdvantageScale = "std", ddof: int = 1
) -> np.ndarray:
    """``(R - mean_g) / (std + 1e-6)`` (Shao et al. 2024, DeepSeekMath, eq. 4).

    Args:
        rewards: float [B].
        groups: int [B], equal for completions of one prompt; need not be contiguous.
        scale: ``std`` divides by the group's standard deviation, ``none`` by nothing (Liu et al.
            2025, Dr. GRPO), ``batch`` by the standard deviation of all rewards.
        ddof: the standard deviations have ``n - ddof`` in the denominator.

    Returns:
        float32 [B]; exactly 0 in groups whose standard deviation is below 1e-8 (or that have one member).
    """
    rewards = rewards.astype(np.float64)
    deviation, std = _deviation_and_std(rewards, groups, ddof)
    deviation = np.where(std < FLAT_STD, 0.0, deviation)
    if scale == "std":
        deviation = deviation / (std + _EPSILON)
    elif scale == "batch":
        _, batch_std = _deviation_and_std(rewards, np.zeros(len(rewards), np.int64), ddof)
        deviation = deviation / (batch_std + _EPSILON)
    return deviation.astype(np.float32)


def flat_group_fraction(rewards: np.ndarray, groups: np.ndarray) -> float:
    """Share of groups whose rewards are all equal, which therefore teach nothing."""
    _, std = _deviation_and_std(rewards.astype(np.float64), groups, 0)
    _, first = np.unique(groups, return_index=True)
    return float(np.mean(std[first] < FLAT_STD)) if len(first) else 0.0


def _deviation_and_std(rewards: np.ndarray, groups: np.ndarray, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    """Deviation from the group's mean and the group's standard deviation, both float64 [B]."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=rewards) / sizes
    deviation = rewards - mean[group]
    variance = np.bincount(group, weights=deviation**2) / np.maximum(sizes - ddof, 1)
    return deviation, np.sqrt(variance)[group]
