"""Where a step's batch comes from, and the feed of encoded examples (see ``rollouts.py`` for the other one)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rl_core.batch import UNIT, SequenceBatch
from rl_core.contracts.algorithm import BatchPlan
from rl_core.rollout.cursor import DataCursor
from rl_core.rollout.encodings import Encodings


@dataclass(frozen=True)
class Draw:
    """What a feed hands to the loop.

    Attributes:
        batch: the sequences of one step.
        metrics: ``rollout/…`` and ``time/…`` values of making it.
        samples: rows for the sample log.
    """

    batch: SequenceBatch
    metrics: dict[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()


class Feed(Protocol):
    """Makes the batch of each step.

    Attributes:
        cursor: position in the data, its whole state.
        samples: whether it samples from the policy, so that the generator needs its newest weights.
    """

    cursor: DataCursor
    samples: bool

    def next(self, step: int) -> Draw:
        """The batch of ``step`` (from 1)."""
        ...

    def close(self) -> None:
        """No further batch is asked for."""
        ...


class ExamplesFeed:
    """Rows encoded by the algorithm (SFT, preference pairs); see :class:`~rl_core.rollout.encodings.Encodings`."""

    samples = False

    def __init__(self, encodings: Encodings, *, plan: BatchPlan, cursor: DataCursor) -> None:
        self.cursor = cursor
        self._encodings = encodings
        self._plan = plan

    def next(self, step: int) -> Draw:
        started = time.perf_counter()
        drawn = self._encodings.draw(self.cursor, self._plan.rows_per_step)
        parts = [self._encodings[i] for i in drawn]
        rows = np.repeat(np.array(drawn, np.int64), [len(part) for part in parts])
        batch = join_rows(parts).with_columns(sequence={"row": rows})
        return Draw(batch, {"data/epoch": self.cursor.epoch, "time/data_s": time.perf_counter() - started})

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
