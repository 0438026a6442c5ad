"""Which completions are the best of their prompt."""

from __future__ import annotations

import numpy as np


def best_of_groups(
    rewards: np.ndarray, groups: np.ndarray, *, keep: int = 1, min_reward: float | None = None
) -> np.ndarray:
    """int64: indices of the ``keep`` highest rewards of every group, rising; equal rewards keep their order.

    Args:
        rewards: float [B].
        groups: int [B], one id per prompt.
        keep: at most this many per group.
        min_reward: leaves out what is below, so that a group may have none.
    """
    order = np.lexsort((np.arange(len(rewards)), -rewards, groups))  # by group, the best first
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    chosen = np.sort(order[rank < keep])
    return chosen if min_reward is None else chosen[rewards[chosen] >= min_reward]
