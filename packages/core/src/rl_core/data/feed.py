"""The feed of encoded examples."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from rl_core.batch import UNIT, SequenceBatch
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.feed import Draw
from rl_core.data.cursor import DataCursor
from rl_core.data.encodings import Encodings


class ExamplesFeed:
    """Rows encoded by the algorithm (SFT, preference pairs); see :class:`~rl_core.data.encodings.Encodings`."""

    samples = False

    def __init__(self, encodings: Encodings, *, plan: BatchPlan, cursor: DataCursor) -> None:
        self._cursor = cursor
        self._encodings = encodings
        self._plan = plan

    @property
    def position(self) -> int:
        """Data rows drawn so far."""
        return self._cursor.position

    def next(self, step: int) -> Draw:
        started = time.perf_counter()
        drawn = self._encodings.draw(self._cursor, self._plan.rows_per_step)
        parts = [self._encodings[i] for i in drawn]
        rows = np.repeat(np.array(drawn, np.int64), [len(part) for part in parts])
        batch = join_rows(parts).with_columns(sequence={"row": rows})
        return Draw(batch, {"data/epoch": self._cursor.epoch, "time/data_s": time.perf_counter() - started})

    def close(self) -> None:
        """Nothing to end."""


def join_rows(parts: Sequence[SequenceBatch]) -> SequenceBatch:
    """Concatenate separately encoded rows; ``unit`` ids, which count from 0 in each, are made distinct."""
    parts = [part for part in parts if len(part)]
    joined = SequenceBatch.concat(parts)
    if UNIT not in joined.sequence_columns:
        return joined
    counts = np.array([int(part.sequence_columns[UNIT].max()) + 1 for part in parts])
    shifts = np.repeat(np.cumsum(counts) - counts, [len(part) for part in parts])
    return joined.with_columns(sequence={UNIT: joined.sequence_columns[UNIT] + shifts})
