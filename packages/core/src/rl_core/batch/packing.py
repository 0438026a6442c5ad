"""Putting weighted items into bins: evenly, or under a budget. Both are deterministic."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Sequence

import numpy as np


def balance(weights: np.ndarray, n: int, *, loads: Sequence[int] | None = None) -> list[list[int]]:
    """Spread items over ``n`` bins of nearly equal weight (longest processing time first, Graham 1969).

    Args:
        loads: what is in the bins already; default: nothing.
    """
    if n < 1:
        raise ValueError(f"cannot split into {n} parts")
    bins: list[list[int]] = [[] for _ in range(n)]
    heap = [(int(load), i) for i, load in enumerate(loads or [0] * n)]
    heapq.heapify(heap)
    for item, weight in _heaviest_first(weights):
        load, lightest = heap[0]
        bins[lightest].append(item)
        # A weightless item still counts, so that it does not pile up in one bin.
        heapq.heapreplace(heap, (load + max(weight, 1), lightest))
    return bins


def best_fit_decreasing(weights: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items into bins of at most ``capacity``, heaviest first into the fullest bin that still fits.

    An item heavier than ``capacity`` gets a bin of its own. O(n log n) for
    integer weights, through a list of bins per remaining room.
    """
    if capacity < 1:
        raise ValueError(f"a bin must hold at least 1 token, got {capacity}")
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted keys of by_room
    for item, weight in _heaviest_first(weights):
        at = bisect.bisect_left(rooms, weight)
        if at < len(rooms):
            room = rooms[at]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
                rooms.pop(at)
            bins[chosen].append(item)
            rest = room - weight
        else:
            chosen = len(bins)
            bins.append([item])
            rest = capacity - weight
        if rest > 0:
            if rest not in by_room:
                by_room[rest] = []
                rooms.insert(bisect.bisect_left(rooms, rest), rest)
            by_room[rest].append(chosen)
    return bins


def _heaviest_first(weights: np.ndarray) -> Iterator[tuple[int, int]]:
    """``(item, weight)`` in Python's own integers, which a loop handles several times faster than numpy's."""
    order = np.argsort(-np.asarray(weights), kind="stable")
    return zip(order.tolist(), np.asarray(weights).astype(np.int64)[order].tolist(), strict=True)
