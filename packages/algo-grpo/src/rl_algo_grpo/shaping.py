"""Length penalties on rewards, and completions that are left out of the loss."""

from __future__ import annotations

import numpy as np
from rl_core.batch import SequenceBatch


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
