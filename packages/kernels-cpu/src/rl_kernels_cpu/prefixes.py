"""Common prefixes of sequences: the prompt of a group's completions, or an instruction before all prompts.

A causal model's output at a token depends only on the tokens up to it, so a common prefix is computed once. Prefixes
are found by comparing tokens; nothing has to say which tokens are a prompt.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from rl_core.batch import SequenceBatch

_WORTH = 0.05
"""Fraction of a batch's tokens that sharing must save, for what it costs."""


def shared_indices(batch: SequenceBatch) -> np.ndarray:
    """The index of every token in a row without repeated prefixes, int64 [T].

    Tokens that end equal prefixes have one index. Indices number the nodes of the sequences' prefix tree (Fredkin 1960)
    from 0 without gaps. Where sharing would save too little, they are 0..T-1.
    """
    order = _sorted(batch)
    common = _common(batch, order)
    if common.sum() < max(1.0, _WORTH * len(batch.tokens)):
        return np.arange(len(batch.tokens), dtype=np.int64)
    indices = np.empty(len(batch.tokens), np.int64)
    used, previous = 0, indices[:0]
    for sequence, shared in zip(order, common.tolist(), strict=True):
        own = indices[batch.offsets[sequence] : batch.offsets[sequence + 1]]
        own[:shared] = previous[:shared]
        further = len(own) - shared
        own[shared:] = np.arange(used, used + further)
        used, previous = used + further, own
    return indices


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
