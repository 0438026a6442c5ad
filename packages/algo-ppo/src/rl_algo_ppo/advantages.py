"""Rewards, advantages and returns per token, over ragged sequences without padding.

A *step* of a sequence is a token with ``loss_mask`` ≠ 0: one that the policy chose. Other tokens
(prompt, tool output) are bridged: the state after a step is the one before the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rl_algo_common.statistics import whiten
from rl_core.batch import SequenceBatch

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle

    from rl_algo_ppo.config import PpoConfig


def with_advantages(
    batch: SequenceBatch, value: ModelHandle, penalties: np.ndarray, config: PpoConfig
) -> SequenceBatch:
    """``batch`` with the token columns ``old_values`` (V before each token), ``advantages`` and ``returns``.

    Args:
        value: the value model.
        penalties: float [T], taken off the reward of every token.
    """
    outputs = value.forward(batch, ("values", "scores") if config.bootstrap_truncated else ("values",))
    terminal_values = None
    if config.bootstrap_truncated:
        terminal_values = np.where(batch.sequence_columns["truncated"], outputs["scores"], 0.0)
    mask, sequence_ids = batch.token_columns["loss_mask"], batch.sequence_ids
    advantages, returns = generalized_advantages(
        token_rewards(batch.sequence_columns["reward"], mask, sequence_ids, penalties=penalties),
        outputs["values"],
        mask,
        sequence_ids,
        gamma=config.gamma,
        lam=config.lam,
        terminal_values=terminal_values,
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return batch.with_columns(token={"advantages": advantages, "old_values": outputs["values"], "returns": returns})


def token_rewards(
    rewards: np.ndarray, mask: np.ndarray, sequence_ids: np.ndarray, *, penalties: np.ndarray | None = None
) -> np.ndarray:
    """A sequence's reward at its last step, minus a penalty at every step (Ouyang et al. 2022, InstructGPT).

    Args:
        rewards: float [B]. That of a sequence without any step is lost.
        mask: [T], ≠ 0 at steps.
        sequence_ids: int64 [T], ascending.
        penalties: float [T], subtracted at steps.

    Returns:
        float64 [T], 0 between steps.
    """
    steps = np.flatnonzero(mask)
    owners = sequence_ids[steps]
    result = np.zeros(len(mask), np.float64)
    if penalties is not None:
        result[steps] -= penalties[steps]
    last = _ends_its_sequence(owners)
    result[steps[last]] += rewards[owners[last]]
    return result


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    sequence_ids: np.ndarray,
    *,
    gamma: float,
    lam: float,
    terminal_values: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16) over the steps of each sequence.

    ``δ_t = r_t + γ V_{t+1} - V_t`` and ``A_t = δ_t + γλ A_{t+1}``, where t + 1 is the next step.

    Args:
        rewards: float [T], as from :func:`token_rewards`.
        values: float [T], V of the state before each token.
        mask: [T], ≠ 0 at steps.
        sequence_ids: int64 [T], ascending.
        gamma: discount per step.
        lam: λ; 0 trusts the values of the next state, 1 the rewards alone.
        terminal_values: float [B], V after the last step; 0 where a sequence has really ended (the default).

    Returns:
        advantages and returns (advantages + values), float32 [T] each, 0 between steps.
    """
    steps = np.flatnonzero(mask)
    owners = sequence_ids[steps]
    last = _ends_its_sequence(owners)
    value = values[steps].astype(np.float64)
    following = np.zeros_like(value)
    following[:-1] = value[1:]
    following[last] = 0.0 if terminal_values is None else terminal_values[owners[last]]
    delta = rewards[steps] + gamma * following - value
    lengths = np.diff(np.flatnonzero(last), prepend=-1)
    advantage = _discounted_sums(delta, lengths, gamma * lam)

    advantages, returns = np.zeros(len(mask), np.float32), np.zeros(len(mask), np.float32)
    advantages[steps] = advantage
    returns[steps] = advantage + value
    return advantages, returns


def explained_variance(values: np.ndarray, returns: np.ndarray, mask: np.ndarray) -> float:
    """``1 - Var(R - V) / Var(R)`` over steps: 1 for perfect values, 0 for constant ones; 0 if all returns are equal."""
    steps = mask != 0
    target = returns[steps].astype(np.float64)
    variance = target.var() if len(target) else 0.0
    return float(1.0 - (target - values[steps]).var() / variance) if variance > 1e-12 else 0.0


def _ends_its_sequence(owners: np.ndarray) -> np.ndarray:
    """bool [N]: the last of each run of equal numbers."""
    last = np.ones(len(owners), bool)
    last[:-1] = owners[1:] != owners[:-1]
    return last


def _discounted_sums(x: np.ndarray, lengths: np.ndarray, factor: float) -> np.ndarray:
    """``y_t = x_t + factor · y_{t+1}`` within runs of ``lengths``, all positive, that make up ``x``.

    The elements are laid out by their distance from the end of their run, longest run first: those
    at one distance are then contiguous, in the order of the ones after them, and the only loop is
    over distances.
    """
    if not len(x):
        return x
    rank = np.empty(len(lengths), np.int64)
    rank[np.argsort(-lengths, kind="stable")] = np.arange(len(lengths))
    distance = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(x))
    counts = np.bincount(distance)
    starts = np.cumsum(counts) - counts
    place = starts[distance] + np.repeat(rank, lengths)
    sums = np.empty_like(x)
    sums[place] = x
    for start, count, after in zip(starts[1:].tolist(), counts[1:].tolist(), starts[:-1].tolist(), strict=True):
        sums[start : start + count] += factor * sums[after : after + count]
    return sums[place]
