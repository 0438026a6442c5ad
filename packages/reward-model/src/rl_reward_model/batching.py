"""Batches of sequences to score: duplicates once, even shares, little padding. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def distinct(sequences: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences without repetition, and int64 [N] with each one's place among them.

    Equal completions thus get exactly equal scores: rounding that depends on the batch would
    otherwise become a difference that group-relative advantages blow up.
    """
    places: dict[bytes, int] = {}
    kept: list[np.ndarray] = []
    index = np.empty(len(sequences), np.int64)
    for i, tokens in enumerate(sequences):
        place = places.setdefault(tokens.tobytes(), len(kept))
        if place == len(kept):
            kept.append(tokens)
        index[i] = place
    return kept, index


def shares(lengths: Sequence[int] | np.ndarray, replicas: int) -> list[np.ndarray]:
    """Indices for each replica: dealt out in turn, longest first, so that all get as many and as long ones."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    return [order[replica::replicas] for replica in range(replicas)]


def batches(lengths: Sequence[int] | np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Indices for each forward pass, sorted by length: rows × longest is at most ``batch_tokens``.

    A sequence longer than that is a batch of its own.
    """
    lengths = np.asarray(lengths, np.int64)
    found: list[np.ndarray] = []
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        found.append(order[start : start + rows])
        start += rows
    return found
