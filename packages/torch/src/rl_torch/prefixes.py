"""What sequences begin with in common: a group's completions their prompt, all prompts an instruction before them.

What a causal model computes for a token depends on the tokens up to it alone, so a common beginning need be computed
once. Nothing has to say which tokens are a prompt: they are compared.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from rl_core.batch import SequenceBatch

_WORTH = 0.05
"""Fraction of a batch's tokens that sharing must save, for what it costs."""


def shared_cells(batch: SequenceBatch) -> np.ndarray:
    """The cell of every token, int64 [T]: the same for tokens that end the same beginning of sequences.

    Cells are the nodes of the sequences' prefix tree (Fredkin 1960), numbered from 0 without gaps; or, where that would
    save too little, a cell for each token in their order.
    """
    order = _sorted(batch)
    common = _common(batch, order)
    if common.sum() < max(1.0, _WORTH * len(batch.tokens)):
        return np.arange(len(batch.tokens), dtype=np.int64)
    cells = np.empty(len(batch.tokens), np.int64)
    used, previous = 0, cells[:0]
    for sequence, shared in zip(order, common.tolist(), strict=True):
        own = cells[batch.offsets[sequence] : batch.offsets[sequence + 1]]
        own[:shared] = previous[:shared]
        further = len(own) - shared
        own[shared:] = np.arange(used, used + further)
        used, previous = used + further, own
    return cells


def _sorted(batch: SequenceBatch) -> list[int]:
    """Sequences in the order of their tokens, so that each has most in common with the one before it."""
    text = batch.tokens.astype(">i4").tobytes()
    ends = (4 * batch.offsets).tolist()
    keys = [text[start:end] for start, end in pairwise(ends)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _common(batch: SequenceBatch, order: list[int]) -> np.ndarray:
    """int64 [B]: how many tokens each sequence of ``order`` has in common with the one before it."""
    common = np.zeros(len(batch), np.int64)
    lengths, begins = batch.lengths[order], batch.offsets[:-1][order]
    compared = np.minimum(lengths[1:], lengths[:-1])
    if not compared.sum():
        return common
    starts = np.cumsum(compared) - compared
    within = np.arange(int(compared.sum())) - np.repeat(starts, compared)
    here, there = (np.repeat(o, compared) + within for o in (begins[1:], begins[:-1]))
    place = np.where(batch.tokens[here] == batch.tokens[there], np.repeat(compared, compared), within)
    some = compared > 0
    common[1:][some] = np.minimum.reduceat(place, starts[some])
    return common
