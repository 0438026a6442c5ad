"""Rows of different lengths that follow each other in flat arrays: picked, put back, asked one by one.

Long rows are copied as slices, at the speed of memory; short ones through an index of every element, which costs
nothing per row. Both give the same.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

SLICED_FROM = 256
"""Mean length in elements from which copying slices beats an index (measured on float32 columns)."""


class Segments:
    """Some segments ("rows" here) of flat arrays, in an order of their own.

    Args:
        starts: int64 [R]: first element of each row.
        lengths: int64 [R].

    Attributes:
        total: elements of all rows.
    """

    def __init__(self, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._starts, self._lengths = _joined(starts, lengths)
        self.total = int(self._lengths.sum())

    @cached_property
    def index(self) -> np.ndarray:
        """int64 [total]: positions of the rows' elements, in order."""
        ends = np.cumsum(self._lengths)
        shifts = np.repeat(self._starts - (ends - self._lengths), self._lengths)
        return shifts + np.arange(self.total, dtype=np.int64)

    def take(self, column: np.ndarray) -> np.ndarray:
        """A copy of the rows' elements of ``column`` [N, ...]: [total, ...]."""
        if not self._is_sliced:
            return column[self.index]
        return np.concatenate([column[piece] for piece in self._slices])

    def put(self, column: np.ndarray, values: np.ndarray) -> None:
        """Write ``values`` [total, ...] over the rows' elements of ``column`` [N, ...].

        Raises:
            ValueError: there are more or fewer values than elements.
        """
        if len(values) != self.total:
            raise ValueError(f"there are {len(values)} values for rows of {self.total} elements")
        if not self._is_sliced:
            column[self.index] = values
            return
        done = 0
        for piece in self._slices:
            end = done + piece.stop - piece.start
            column[piece] = values[done:end]
            done = end

    @property
    def _is_sliced(self) -> bool:
        return self.total > 0 and self.total >= SLICED_FROM * len(self._starts)

    @cached_property
    def _slices(self) -> list[slice]:
        ends = self._starts + self._lengths
        return [slice(start, end) for start, end in zip(self._starts.tolist(), ends.tolist(), strict=True)]


def any_per_row(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool [R]: whether any of ``flags`` (bool [N]) is set in each of the rows between ``offsets`` (int64 [R+1])."""
    found = np.zeros(len(offsets) - 1, bool)
    filled = np.diff(offsets) > 0
    if filled.any():
        found[filled] = np.logical_or.reduceat(flags, offsets[:-1][filled])
    return found


def _joined(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same elements in fewer rows: without empty ones, and rows that follow each other as one."""
    filled = lengths > 0
    starts, lengths = starts[filled], lengths[filled]
    if not len(starts):
        return starts, lengths
    begins = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1] + lengths[:-1]]))
    return starts[begins], np.add.reduceat(lengths, begins)
