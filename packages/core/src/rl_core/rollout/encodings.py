"""Rows as training sequences: each is encoded once, many while the workers of a stage start."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Algorithm
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.errors import DataError
from rl_core.rollout.cursor import DataCursor

logger = logging.getLogger(__name__)

_CACHED_TOKENS = 50_000_000
"""Encoded tokens kept in memory (int32 and a float32 mask: 400 MB at most)."""

_NICENESS = 10
"""Of encoding ahead: workers that start meanwhile go first."""


class Encodings:
    """What an algorithm makes of each row, kept between epochs.

    Args:
        max_length: tokens of the longest sequence that the model takes.
    """

    def __init__(self, rows: Sequence[Row], *, algorithm: Algorithm, tokenizer: Tokenizer, max_length: int) -> None:
        self._rows = rows
        self._algorithm = algorithm
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._cache: dict[int, SequenceBatch] = {}
        self._cached_tokens = 0

    def __len__(self) -> int:
        """Rows that need not be encoded again."""
        return len(self._cache)

    def __getitem__(self, index: int) -> SequenceBatch:
        """The sequences of row ``index``.

        Raises:
            DataError: the row cannot be trained on, or is longer than ``max_length``.
        """
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
            if not self._full:
                self._cache[index] = encoded
                self._cached_tokens += len(encoded.tokens)
        return encoded

    @contextmanager
    def ahead(self, cursor: DataCursor, count: int) -> Iterator[None]:
        """Encode the next ``count`` rows of ``cursor`` in a thread, as far as it comes while the block lasts.

        A row that cannot be encoded says so when it is drawn.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._encode, args=(cursor, count, done), name="encoding ahead", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

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
                logger.debug("a row could not be encoded ahead: %s", error)
