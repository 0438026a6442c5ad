"""Rows as tokens: each is encoded once, many while the workers of a stage start, and long ones are counted first."""

from __future__ import annotations

import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Algorithm
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.data.cursor import DataCursor
from rl_core.errors import DataError
from rl_core.long_rows import LongRowError, LongRows

logger = logging.getLogger(__name__)

_CACHED_TOKENS = 50_000_000
"""Encoded tokens kept in memory (int32 and a float32 mask: 400 MB at most)."""

_CHECKED_ROWS = 20_000
"""Rows that are encoded before the first step, at most: seconds. Later ones are treated alike when they are drawn."""

_NICENESS = 10
"""Of prefetching: workers that start meanwhile go first."""


class EncodedRows(ABC):
    """What is made of each row, kept between epochs.

    Attributes:
        long: the record of long rows; None where they are errors that name no choice.
    """

    long: LongRows | None

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._cache: dict[int, Any] = {}
        self._cached_tokens = 0

    def __len__(self) -> int:
        """Rows that need not be encoded again."""
        return len(self._cache)

    @abstractmethod
    def encode(self, index: int) -> Any:
        """What becomes of row ``index``; something empty where it is left out."""

    def __getitem__(self, index: int) -> Any:
        """The encoded row ``index``, from memory where it is there.

        Raises:
            DataError: it cannot be used.
        """
        encoded = self._cache.get(index)
        if encoded is None:
            encoded = self.encode(index)
            if not self._full:
                self._cache[index] = encoded
                self._cached_tokens += len(getattr(encoded, "tokens", encoded))
        return encoded

    def draw(self, cursor: DataCursor, count: int) -> list[int]:
        """The next ``count`` rows of ``cursor`` that are not left out; which those are depends on the data alone.

        Raises:
            DataError: all rows of an epoch are left out, or one cannot be used.
        """
        drawn: list[int] = []
        left_out = 0
        while len(drawn) < count:
            for index in cursor.draw(count - len(drawn)).tolist():
                if len(self[index]):
                    drawn.append(index)
                    left_out = 0
                    continue
                left_out += 1
                if left_out == cursor.size:
                    why = f"\n    {self.long.summary(cursor.size)}" if self.long is not None and len(self.long) else ""
                    raise DataError(f"none of the {cursor.size:,} rows of data can be used{why}")
        return drawn

    @contextmanager
    def prefetching(self, cursor: DataCursor, count: int) -> Iterator[None]:
        """Encode the next ``count`` rows of ``cursor`` in a thread, as far as it comes while the block lasts.

        A row that cannot be encoded says so in :meth:`check`, or when it is drawn.
        """
        done = threading.Event()
        if self.long is not None:
            self.long.quiet()
        thread = threading.Thread(target=self._encode, args=(cursor, count, done), name="encode rows", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def check(self, cursor: DataCursor, count: int) -> None:
        """Encode the next ``count`` rows of ``cursor`` (at most 20,000) and say how many are too long.

        Raises:
            DataError: one cannot be used, or is too long where that is an error; the message names them.
        """
        self.check_rows(cursor.draw(min(count, cursor.size, _CHECKED_ROWS)).tolist())

    def check_rows(self, indices: Sequence[int], *, level: int = logging.WARNING) -> None:
        """Encode these rows; how many are too long is said at ``level``. Raises as :meth:`check` does."""
        if self.long is not None:
            self.long.quiet()
        checked = 0
        for index in dict.fromkeys(indices):
            if self._full:  # a row that is not kept would be encoded twice
                break
            checked += 1
            try:
                self[index]
            except LongRowError:
                if self.long is None:
                    raise
        if self.long is None or not len(self.long):
            return
        if self.long.on_long == "error":
            raise self.long.error(checked)
        logger.log(level, "%s", self.long.summary(checked))

    def _placed(self, index: int) -> Row:
        """The row with a place, whatever it came from."""
        row = self._rows[index]
        return row if row.get("__where__") else {**row, "__where__": f"row {index}"}

    @property
    def _full(self) -> bool:
        return self._cached_tokens >= _CACHED_TOKENS

    def _encode(self, cursor: DataCursor, count: int, done: threading.Event) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own, and its number may be a process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        for _ in range(count):
            if done.is_set() or self._full or len(self) == len(self._rows):
                return
            try:
                self[int(cursor.draw(1)[0])]
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again where the row is drawn
                logger.debug("a row could not be encoded before it is drawn: %s", error)


class Encodings(EncodedRows):
    """What an algorithm makes of each row: its sequences; none for a row that it leaves out.

    Args:
        max_length: tokens of the longest sequence that the model takes.
    """

    def __init__(self, rows: Sequence[Row], *, algorithm: Algorithm, tokenizer: Tokenizer, max_length: int) -> None:
        super().__init__(rows)
        self._algorithm = algorithm
        self._tokenizer = tokenizer
        self._max_length = max_length
        limit_rows = getattr(algorithm, "limit_rows", None)
        self.long = limit_rows(max_length) if callable(limit_rows) else None

    def encode(self, index: int) -> SequenceBatch:
        """The sequences of row ``index``.

        Raises:
            DataError: the row cannot be trained on, or is longer than ``max_length``.
        """
        row = self._placed(index)
        encoded = self._algorithm.encode([row], self._tokenizer)
        longest = int(encoded.lengths.max(initial=0))
        if longest > self._max_length:
            raise DataError(
                f"{row['__where__']}: the example has {longest} tokens, more than model.max_length {self._max_length}\n"
                "    raise model.max_length, or shorten or drop the row"
            )
        return encoded
