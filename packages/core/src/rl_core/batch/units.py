"""Units: groups of sequences that stay together (a DPO pair), and sequences that are units of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl_core.batch.ragged import Segments


@dataclass(frozen=True)
class Units:
    """U units of B sequences, in order of first appearance.

    Attributes:
        tokens: int64 [U]: tokens of each.
        order: int64 [B]: the sequences, unit by unit; None where every sequence is a unit.
        starts, counts: int64 [U]: where each unit lies in ``order``; None likewise.
    """

    tokens: np.ndarray
    order: np.ndarray | None = None
    starts: np.ndarray | None = None
    counts: np.ndarray | None = None

    @classmethod
    def of(cls, column: np.ndarray | None, lengths: np.ndarray) -> Units:
        """Units by the ids in ``column`` ([B], or None) of sequences with ``lengths`` (int64 [B]) tokens."""
        if column is None:
            return cls(lengths)
        _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        unit = rank[inverse]
        counts = np.bincount(unit, minlength=len(first))
        tokens = np.bincount(unit, weights=lengths, minlength=len(first)).astype(np.int64)
        return cls(tokens, np.argsort(unit, kind="stable"), np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self.tokens)

    def members(self, which: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64: the sequences of the units ``which``, in that order."""
        chosen = np.asarray(which, np.int64)
        if self.order is None or self.starts is None or self.counts is None:
            return chosen
        return Segments(self.starts[chosen], self.counts[chosen]).take(self.order)
