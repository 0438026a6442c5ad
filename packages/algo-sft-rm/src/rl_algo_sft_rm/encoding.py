"""Rows to training sequences: which rows are too long, and which tokens count."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.errors import DataError

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import Tokenizer

    from rl_algo_sft_rm.config import SftConfig

_log = logging.getLogger(__name__)


class RowEncoder:
    """Encodes rows under the ``loss_on``, ``max_tokens`` and ``on_long_row`` of a config."""

    def __init__(self, config: SftConfig) -> None:
        self.config = config
        self._warned = False

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        """Sequences with the token column ``loss_mask`` (float32 [T]), in the order of ``rows``.

        The first token of a sequence has no log-probability, so its weight is always 0 and it does
        not count in the loss's denominator.

        Raises:
            DataError: a row is longer than ``max_tokens`` under ``on_long_row: error``, a row has
                no token to train on, or no row is left.
        """
        limit = self.config.max_tokens
        sequences: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        long_rows: list[tuple[str, int]] = []
        for index, row in enumerate(rows):
            where = str(row.get("__where__", f"row {index} of the batch"))
            tokens, mask = tokenizer.encode_example(row, self.config.loss_on)
            is_long = limit is not None and len(tokens) > limit
            if is_long:
                long_rows.append((where, len(tokens)))
                if self.config.on_long_row == "error":
                    raise _too_long(where, len(tokens), limit)
                if self.config.on_long_row == "skip":
                    continue
            sequences.append(np.asarray(tokens[:limit], np.int32))
            masks.append(_weights(mask[:limit], where, cut=is_long))
        if long_rows:
            self._report(long_rows)
        if not sequences:
            raise DataError(
                f"all {len(rows)} rows of this batch are longer than max_tokens {limit} and were skipped; "
                "raise algorithm.max_tokens or set algorithm.on_long_row: truncate"
            )
        return SequenceBatch.from_lists(sequences, token_columns={"loss_mask": masks})

    def _report(self, long_rows: Sequence[tuple[str, int]]) -> None:
        """Warn the first time; afterwards only at level INFO, because every epoch meets the same rows again."""
        where, tokens = long_rows[0]
        _log.log(
            logging.INFO if self._warned else logging.WARNING,
            "%d row(s) of this batch longer than algorithm.max_tokens %d %s; first: %s with %d tokens",
            len(long_rows),
            self.config.max_tokens,
            {"truncate": "truncated", "skip": "skipped"}[self.config.on_long_row],
            where,
            tokens,
        )
        self._warned = True


def _weights(mask: np.ndarray, where: str, *, cut: bool) -> np.ndarray:
    weights = np.array(mask, np.float32)
    weights[:1] = 0.0
    if not weights.any():
        why = "its completion begins after max_tokens" if cut else "its completion is empty"
        fix = "raise algorithm.max_tokens or set algorithm.on_long_row: skip" if cut else "remove the row"
        raise DataError(f"{where}: no token to train on, {why}; {fix}")
    return weights


def _too_long(where: str, tokens: int, limit: int | None) -> DataError:
    return DataError(
        f"{where}: {tokens} tokens, but algorithm.max_tokens is {limit}; "
        "raise it, or set algorithm.on_long_row to truncate or skip"
    )
