"""Where a step's batch comes from, and the feed of encoded examples (see ``rollouts.py`` for the other one)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rl_core.batch import UNIT, SequenceBatch
from rl_core.contracts.algorithm import Algorithm, BatchPlan
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.errors import DataError
from rl_core.rollout.cursor import DataCursor

_CACHED_TOKENS = 50_000_000
"""Encoded tokens kept in memory (int32 and a float32 mask: 400 MB at most)."""


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
    """Supplies the batch of each step.

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
    """Rows encoded by the algorithm (SFT, preference pairs); encodings are kept between epochs."""

    samples = False

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        algorithm: Algorithm,
        tokenizer: Tokenizer,
        plan: BatchPlan,
        cursor: DataCursor,
        max_length: int,
    ) -> None:
        self.cursor = cursor
        self._rows = rows
        self._algorithm = algorithm
        self._tokenizer = tokenizer
        self._plan = plan
        self._max_length = max_length
        self._cache: dict[int, SequenceBatch] = {}
        self._cached_tokens = 0

    def next(self, step: int) -> Draw:
        started = time.perf_counter()
        drawn = self.cursor.draw(self._plan.rows_per_step)
        parts = [self._encoded(int(i)) for i in drawn]
        rows = np.repeat(drawn.astype(np.int64), [len(part) for part in parts])
        batch = join_rows(parts).with_columns(sequence={"row": rows})
        if not len(batch):
            raise DataError(f"step {step}: none of the {self._plan.rows_per_step} rows drawn can be trained on")
        return Draw(batch, {"data/epoch": self.cursor.epoch, "time/data_s": time.perf_counter() - started})

    def close(self) -> None:
        """Nothing to end."""

    def _encoded(self, index: int) -> SequenceBatch:
        encoded = self._cache.get(index)
        if encoded is None:
            row = self._rows[index]
            encoded = self._algorithm.encode([row], self._tokenizer)
            longest = int(encoded.lengths.max(initial=0))
            if longest > self._max_length:
                raise DataError(
                    f"{row.get('__where__', f'row {index}')}: the example has {longest} tokens, more than "
                    f"model.max_length {self._max_length}\n    raise model.max_length, or shorten or drop the row "
                    "(algorithm.max_tokens, algorithm.on_long_row)"
                )
            if self._cached_tokens < _CACHED_TOKENS:
                self._cache[index] = encoded
                self._cached_tokens += len(encoded.tokens)
        return encoded


def join_rows(parts: Sequence[SequenceBatch]) -> SequenceBatch:
    """Concatenate separately encoded rows; ``unit`` ids, which count from 0 in each, are made distinct."""
    parts = [part for part in parts if len(part)]
    joined = SequenceBatch.concat(parts)
    if UNIT not in joined.sequence_columns:
        return joined
    counts = np.array([int(part.sequence_columns[UNIT].max()) + 1 for part in parts])
    shifts = np.repeat(np.cumsum(counts) - counts, [len(part) for part in parts])
    return joined.with_columns(sequence={UNIT: joined.sequence_columns[UNIT] + shifts})
