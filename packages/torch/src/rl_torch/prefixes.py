"""Which sequences of a batch begin alike: completions of one prompt, or a chosen and a rejected answer to it.

What a causal model computes for a token depends on the tokens up to it alone, so what sequences share need be computed
once. Nothing has to say which tokens are a prompt: they are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rl_core.batch import SequenceBatch

_FEWEST = 2
"""Tokens below which nothing is shared."""

_WORTH = 0.05
"""Fraction of a batch's tokens that sharing must save, for what it costs."""

_ALIKE = 0.75
"""Of what a group shares already, a further sequence must have this much, or it begins a group of its own: an
instruction before all prompts must not end the sharing of the prompts behind it."""


@dataclass(frozen=True)
class SharedPrefixes:
    """Groups of neighbours in a batch of B sequences.

    Attributes:
        first: int64 [B], the first sequence of each sequence's group.
        shared: int64 [B], tokens at the beginning that are the first one's, too; 0 for the first one itself.
    """

    first: np.ndarray
    shared: np.ndarray

    @classmethod
    def of(cls, batch: SequenceBatch) -> SharedPrefixes:
        """Find them; every sequence keeps a token of its own."""
        alike = np.minimum(_common(batch), batch.lengths - 1)
        alike[1:] = np.minimum(alike[1:], batch.lengths[:-1] - 1)
        first, shared = np.arange(len(batch), dtype=np.int64), np.zeros(len(batch), np.int64)
        start, least = 0, 0
        for i in range(1, len(batch)):
            joins = alike[i] >= max(_FEWEST, _ALIKE * least)
            if joins:
                least = min(least, int(alike[i])) if least else int(alike[i])
                first[i] = start
                shared[start + 1 : i + 1] = least
            else:
                start, least = i, 0
        if shared.sum() < _WORTH * len(batch.tokens):
            return cls(np.arange(len(batch), dtype=np.int64), np.zeros(len(batch), np.int64))
        return cls(first, shared)


def _common(batch: SequenceBatch) -> np.ndarray:
    """int64 [B]: how many tokens each sequence has in common with the one before it."""
    common = np.zeros(len(batch), np.int64)
    lengths = batch.lengths
    compared = np.minimum(lengths[1:], lengths[:-1])
    if not compared.sum():
        return common
    starts = np.cumsum(compared) - compared
    within = np.arange(int(compared.sum())) - np.repeat(starts, compared)
    here, there = (np.repeat(o, compared) + within for o in (batch.offsets[1:-1], batch.offsets[:-2]))
    place = np.where(batch.tokens[here] == batch.tokens[there], np.repeat(compared, compared), within)
    some = compared > 0
    common[1:][some] = np.minimum.reduceat(place, starts[some])
    return common
