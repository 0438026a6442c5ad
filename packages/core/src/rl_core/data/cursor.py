"""Which data rows a step draws: a seeded shuffle per epoch, computed rather than remembered.

The position is all there is to save, so a resumed run draws exactly the rows that follow.
"""

from __future__ import annotations

import numpy as np


class DataCursor:
    """Rows for consecutive steps.

    Attributes:
        size: number of rows in the dataset.
        seed: the run's seed.
        position: rows drawn so far, over all epochs.
    """

    def __init__(self, *, size: int, seed: int, position: int = 0) -> None:
        if size < 1:
            raise ValueError("a dataset needs at least one row")
        self.size = size
        self.seed = seed
        self.position = position
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def draw(self, count: int) -> np.ndarray:
        """Row indices int64 [count]; every row appears once per epoch, in an order of its own."""
        drawn = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, offset = divmod(self.position, self.size)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size)
            rows = self._order[offset : offset + count - done]
            drawn[done : done + len(rows)] = rows
            done += len(rows)
            self.position += len(rows)
        return drawn

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.position / self.size
