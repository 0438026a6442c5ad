"""Leaving sequences without a gradient out of an optimizer step, which stays the same step.

A sequence whose tokens all count 0 in the loss adds 0 to its gradient: it needs no forward and no backward pass. It
still counts in what sums are divided by.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rl_core.batch import UNIT, SequenceBatch
from rl_core.batch.ragged import any_per_row
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.metrics import Metrics


def without_zero_gradient(
    batch: SequenceBatch, loss: LossSpec, scale: Scale, *, auxiliary_loss: bool = False
) -> tuple[SequenceBatch, Scale, Metrics]:
    """What an optimizer step on ``batch`` has to compute on, by ``loss.zero_where``.

    If nothing has a gradient, the shortest sequence with a token in the mask stays (and the rest of its unit): an
    optimizer step on a gradient of 0 still decays weights and moments, and has something to measure.

    Args:
        auxiliary_loss: the model adds a loss of its own, so that everything has a gradient.

    Returns:
        the sequences to compute on, in their order and at least one; ``scale`` of the whole step, with the tokens that
        are left out; and the metric ``skipped_sequences_fraction``, none without ``zero_where``.
    """
    if loss.zero_where is None or not len(batch):
        return batch, scale, {}
    kept = np.ones(len(batch), bool) if auxiliary_loss else has_gradient(batch, loss.zero_where)
    if not kept.any():
        kept[_cheapest(batch)] = True
    if UNIT in batch.sequence_columns:
        _, unit = np.unique(batch.sequence_columns[UNIT], return_inverse=True)
        kept = (np.bincount(unit, weights=kept) > 0)[unit]
    skipped = float(np.mean(~kept))
    if kept.all():
        return batch, scale, {"skipped_sequences_fraction": skipped}
    part = batch.select(kept)
    left_out = Scale.of(batch).tokens - Scale.of(part).tokens
    return part, replace(scale, skipped_tokens=left_out), {"skipped_sequences_fraction": skipped}


def has_gradient(batch: SequenceBatch, zero_where: str) -> np.ndarray:
    """bool [B]: whether a sequence has a token at which neither ``loss_mask`` nor the column ``zero_where`` is 0."""
    return any_per_row(_mask(batch) & (batch.token_columns[zero_where] != 0), batch.offsets)


def _cheapest(batch: SequenceBatch) -> int:
    """The shortest sequence, of those with tokens in the mask where there are any."""
    return int(np.lexsort((batch.lengths, ~any_per_row(_mask(batch), batch.offsets)))[0])


def _mask(batch: SequenceBatch) -> np.ndarray:
    mask = batch.token_columns.get("loss_mask")
    return np.ones(len(batch.tokens), bool) if mask is None else mask != 0
