"""Advantages: how much better a completion is than others of its prompt, or of its step, after penalties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from rl_algo_common.kl import kl_to_reference
from rl_algo_common.statistics import EPSILON, FLAT_STD, whiten
from rl_core.batch import SequenceBatch
from rl_core.batch.ragged import any_per_row
from rl_core.metrics import Metrics

if TYPE_CHECKING:
    from rl_algo_grpo.config import GrpoConfig

AdvantageScale = Literal["std", "none", "batch"]


def with_advantages(batch: SequenceBatch, config: GrpoConfig) -> tuple[SequenceBatch, Metrics]:
    """``batch`` with the token column ``advantages``, and without truncated completions if they are to be masked.

    Returns:
        the batch; ``rollout/advantage_zero_fraction``, and what the penalties on the rewards were.
    """
    rewards, metrics = batch.sequence_columns["reward"].astype(np.float64), {}
    if config.overlong.mode == "shape" and config.overlong.max_tokens is not None:
        penalty = overlong_penalty(
            completion_lengths(batch), max_tokens=config.overlong.max_tokens, buffer=config.overlong.buffer
        )
        rewards, metrics["rollout/overlong_penalty"] = rewards + penalty, float(penalty.mean())
    kl = np.zeros(len(batch.tokens))
    if config.kl_in_reward:
        kl, mask = kl_to_reference(batch, config.kl.estimator), batch.token_columns["loss_mask"]
        metrics["policy/kl_reference"] = float((kl * mask).sum() / (mask.sum() or 1.0))
    batch = batch.with_columns(
        token={"advantages": token_advantages(batch, rewards, config.kl.coefficient * kl, config)}
    )
    metrics["rollout/advantage_zero_fraction"] = zero_group_fraction(batch)
    return without_truncated(batch) if config.overlong.mode == "mask" else batch, metrics


def token_advantages(
    batch: SequenceBatch, rewards: np.ndarray, penalties: np.ndarray, config: GrpoConfig
) -> np.ndarray:
    """float32 [T] from rewards [B] and what each token costs [T]."""
    if config.whitens:
        baseline = config.advantage == "reinforce++-baseline"
        return whitened_advantages(rewards, penalties, batch, group_baseline=baseline)
    if config.kl_in_reward:
        rewards = rewards - np.bincount(batch.sequence_ids, weights=penalties, minlength=len(batch))
    advantages = group_advantages(
        rewards,
        batch.sequence_columns["group"],
        scale=config.advantage_scale,
        ddof=config.advantage_ddof,
        leave_one_out=config.advantage == "rloo",
    )
    return np.repeat(advantages, batch.lengths)


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
        batch_std = _group_statistics(rewards, np.zeros(len(rewards), np.int64), ddof)[1]
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
        rewards = _group_statistics(rewards, batch.sequence_columns["group"], 0)[0]
    mask = batch.token_columns["loss_mask"]
    return whiten(rewards[batch.sequence_ids] - sum_to_go(penalties * (mask != 0), batch), mask)


def varied_groups(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """bool [B]: whether the rewards of a sequence's group differ, so that there is something to learn."""
    return _group_statistics(rewards.astype(np.float64), groups, 0)[1] >= FLAT_STD


def zero_group_fraction(batch: SequenceBatch) -> float:
    """Share of groups in which every one of the ``advantages`` is 0, so that they have no gradient."""
    names, group = np.unique(batch.sequence_columns["group"], return_inverse=True)
    varied = any_per_row(batch.token_columns["advantages"] != 0, batch.offsets)
    return float(np.mean(np.bincount(group, weights=varied) == 0)) if len(names) else 0.0


def overlong_penalty(lengths: np.ndarray, *, max_tokens: int, buffer: int) -> np.ndarray:
    """Soft overlong punishment (Yu et al. 2025, DAPO, eq. 13).

    0 up to ``max_tokens - buffer``, then falling linearly to -1 at ``max_tokens``, and -1 above.

    Args:
        lengths: [B], tokens of each completion.

    Returns:
        float64 [B], to be added to the rewards.
    """
    return -np.clip((lengths - (max_tokens - buffer)) / buffer, 0.0, 1.0)


def completion_lengths(batch: SequenceBatch) -> np.ndarray:
    """int64 [B]: tokens that the policy chose, those with a non-zero ``loss_mask``."""
    return np.bincount(batch.sequence_ids, weights=batch.token_columns["loss_mask"] != 0, minlength=len(batch)).astype(
        np.int64
    )


def without_truncated(batch: SequenceBatch) -> SequenceBatch:
    """``batch`` with a ``loss_mask`` of 0 on sequences that were ``truncated``.

    They no longer count among the tokens of a mean over tokens. Among sequences they do: means over
    sequences and constant lengths take them as 0.
    """
    kept = ~batch.sequence_columns["truncated"].astype(bool)
    mask = batch.token_columns["loss_mask"]
    return batch.with_columns(token={"loss_mask": mask * kept[batch.sequence_ids].astype(mask.dtype)})


def sum_to_go(values: np.ndarray, batch: SequenceBatch) -> np.ndarray:
    """float64 [T]: the sum of ``values`` [T] from each token to the end of its sequence, itself included."""
    running = np.concatenate([np.zeros(1), np.cumsum(values, dtype=np.float64)])
    return running[batch.offsets[1:]][batch.sequence_ids] - running[:-1]


def _group_statistics(rewards: np.ndarray, groups: np.ndarray, ddof: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deviation from the group's mean, the group's standard deviation and its size, all [B]."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=rewards) / sizes
    deviation = rewards - mean[group]
    variance = np.bincount(group, weights=deviation**2) / np.maximum(sizes - ddof, 1)
    return deviation, np.sqrt(variance)[group], sizes[group]
