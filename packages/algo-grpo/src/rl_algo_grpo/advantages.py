"""Advantages: how much better a completion is than others of its prompt, or of its step."""

from __future__ import annotations

from typing import Literal

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.statistics import EPSILON, FLAT_STD, whiten

from rl_algo_grpo.shaping import sum_to_go

AdvantageScale = Literal["std", "none", "batch"]


def group_advantages(
    rewards: np.ndarray,
    groups: np.ndarray,
    *,
    scale: AdvantageScale = "std",
    ddof: int = 1,
    leave_one_out: bool = False,
) -> np.ndarray:
    """``(R - mean_g) / (std + 1e-6)`` (Shao et al. 2024, DeepSeekMath, eq. 4).

    Args:
        rewards: float [B].
        groups: int [B], equal for completions of one prompt; need not be contiguous.
        scale: ``std`` divides by the group's standard deviation, ``none`` by nothing (Liu et al.
            2025, Dr. GRPO), ``batch`` by the standard deviation of all rewards.
        ddof: the standard deviations have ``n - ddof`` in the denominator.
        leave_one_out: subtract the mean of the others of the group (Ahmadian et al. 2024, RLOO).
            The standard deviation stays that of the whole group: without one completion it can be 0.

    Returns:
        float32 [B]; exactly 0 in groups whose standard deviation is below 1e-8 (or that have one member).
    """
    rewards = rewards.astype(np.float64)
    deviation, std, size = _group_statistics(rewards, groups, ddof)
    deviation = np.where(std < FLAT_STD, 0.0, deviation)
    if leave_one_out:
        # R - (Σ - R) / (n - 1) = (R - mean) · n / (n - 1)
        deviation = deviation * size / np.maximum(size - 1, 1)
    if scale == "std":
        deviation = deviation / (std + EPSILON)
    elif scale == "batch":
        _, batch_std, _ = _group_statistics(rewards, np.zeros(len(rewards), np.int64), ddof)
        deviation = deviation / (batch_std + EPSILON)
    return deviation.astype(np.float32)


def whitened_advantages(
    rewards: np.ndarray, penalties: np.ndarray, batch: SequenceBatch, *, group_baseline: bool
) -> np.ndarray:
    """``A_t = R - Σ_{s ≥ t} penalty_s``, whitened over the tokens of the step (Hu et al. 2025, REINFORCE++).

    Args:
        rewards: float [B].
        penalties: float [T], what a token costs: the weighted KL to the reference.
        batch: its ``loss_mask`` says which tokens count, its ``group`` which rewards are compared.
        group_baseline: subtract the group's mean from the rewards first.

    Returns:
        float32 [T]; 0 outside the mask, and everywhere if all are equal.
    """
    rewards = rewards.astype(np.float64)
    if group_baseline:
        rewards, _, _ = _group_statistics(rewards, batch.sequence_columns["group"], 0)
    mask = batch.token_columns["loss_mask"]
    return whiten(rewards[batch.sequence_ids] - sum_to_go(penalties * (mask != 0), batch), mask)


def varied_groups(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """bool [B]: whether the rewards of a sequence's group differ, so that there is something to learn."""
    _, std, _ = _group_statistics(rewards.astype(np.float64), groups, 0)
    return std >= FLAT_STD


def zero_group_fraction(advantages: np.ndarray, groups: np.ndarray) -> float:
    """Share of groups in which every advantage is 0, so that they have no gradient (both [T], or both [B])."""
    names, group = np.unique(groups, return_inverse=True)
    return float(np.mean(np.bincount(group, weights=advantages != 0) == 0)) if len(names) else 0.0


def _group_statistics(rewards: np.ndarray, groups: np.ndarray, ddof: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deviation from the group's mean, the group's standard deviation and its size, all [B]."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=rewards) / sizes
    deviation = rewards - mean[group]
    variance = np.bincount(group, weights=deviation**2) / np.maximum(sizes - ddof, 1)
    return deviation, np.sqrt(variance)[group], sizes[group]
