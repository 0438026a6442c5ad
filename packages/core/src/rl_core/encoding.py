"""Rows to training sequences: single examples and preference pairs, and what happens to long ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rl_core.batch import UNIT, SequenceBatch
from rl_core.errors import DataError

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import LossOn, Tokenizer

logger = logging.getLogger(__name__)

OnLongRow = Literal["error", "truncate", "skip"]


@dataclass(frozen=True)
class LengthLimit:
    """Longest sequence in tokens (None: no limit of its own) and what happens to longer ones."""

    max_tokens: int | None = None
    on_long_row: OnLongRow = "error"


class RowEncoder:
    """Encodes rows for algorithms that train on examples.

    The first token of a sequence has no log-probability, so its weight is always 0 and it does not
    count in a loss's denominator. A sequence ends with its last trained token (a chat template may
    put a newline after it): nothing depends on what follows, and a score is read at the end.
    """

    def __init__(self, limit: LengthLimit | None = None) -> None:
        self._limit = limit or LengthLimit()
        self._warned = False

    def examples(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, loss_on: LossOn = "completion"
    ) -> SequenceBatch:
        """One sequence a row, with the token column ``loss_mask`` (float32 [T]).

        Raises:
            DataError: a row is too long under ``on_long_row: error``, or has no token to train on.
        """
        sequences, masks = [], []
        for index, row in enumerate(rows):
            encoded = self._encode(row, tokenizer, loss_on, _where(row, index))
            if encoded is not None:
                sequences.append(encoded[0])
                masks.append(encoded[1])
        return SequenceBatch.from_lists(sequences, token_columns={"loss_mask": masks})

    def pairs(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        numbers: Mapping[str, str] | None = None,
    ) -> SequenceBatch:
        """Two sequences a row, chosen then rejected, that share a ``unit`` id.

        Args:
            numbers: sequence column → row column with a number, carried along for both sequences (float32).

        Returns:
            token column ``loss_mask`` (on the completions); sequence columns ``unit`` (int64),
            ``chosen`` (bool) and those of ``numbers``. A pair is skipped whole.

        Raises:
            DataError: a row lacks ``prompt``, ``chosen``, ``rejected`` or a number, is too long, or
                has nothing to train on.
        """
        sequences: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        units: list[int] = []
        carried: dict[str, list[float]] = {name: [] for name in numbers or {}}
        for index, row in enumerate(rows):
            where = _where(row, index)
            missing = [name for name in ("prompt", "chosen", "rejected") if row.get(name) is None]
            if missing:
                raise DataError(
                    f"{where}: a preference pair needs {' and '.join(missing)}\n"
                    "    map the columns in the data section, e.g. chosen: better, rejected: worse"
                )
            values = {name: _number(row, column, where) for name, column in (numbers or {}).items()}
            both = [self._side(row, side, tokenizer, where) for side in ("chosen", "rejected")]
            if None not in both:
                sequences += [pair[0] for pair in both if pair]
                masks += [pair[1] for pair in both if pair]
                units += [len(units) // 2] * 2
                for name, value in values.items():
                    carried[name] += [value] * 2
        return SequenceBatch.from_lists(
            sequences,
            token_columns={"loss_mask": masks},
            sequence_columns={
                UNIT: np.array(units, np.int64),
                "chosen": np.tile([True, False], len(units) // 2).astype(bool),
                **{name: np.array(column, np.float32) for name, column in carried.items()},
            },
        )

    def _side(
        self, row: Mapping[str, Any], side: str, tokenizer: Tokenizer, where: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        where = f"{where} ({side})"
        example = {**row, "completion": row[side], "__where__": where}
        return self._encode(example, tokenizer, "completion", where)

    def _encode(
        self, row: Mapping[str, Any], tokenizer: Tokenizer, loss_on: LossOn, where: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        limit = self._limit.max_tokens
        tokens, mask = _up_to_last_trained(*tokenizer.encode_example(row, loss_on))
        is_long = limit is not None and len(tokens) > limit
        if is_long:
            if self._limit.on_long_row == "error":
                raise DataError(
                    f"{where}: {len(tokens)} tokens, but algorithm.max_tokens is {limit}; "
                    "raise it, or set algorithm.on_long_row to truncate or skip"
                )
            self._report(where, len(tokens))
            if self._limit.on_long_row == "skip":
                return None
        tokens, mask = _up_to_last_trained(tokens[:limit], mask[:limit])
        return np.asarray(tokens, np.int32), _weights(mask, where, cut=is_long)

    def _report(self, where: str, tokens: int) -> None:
        """Warn the first time; afterwards only at level INFO, because every epoch meets the same rows again."""
        logger.log(
            logging.INFO if self._warned else logging.WARNING,
            "a row longer than algorithm.max_tokens %d is %s: %s has %d tokens (further ones at level INFO)",
            self._limit.max_tokens,
            {"truncate": "truncated", "skip": "skipped"}[self._limit.on_long_row],
            where,
            tokens,
        )
        self._warned = True


def _where(row: Mapping[str, Any], index: int) -> str:
    return str(row.get("__where__", f"row {index} of the batch"))


def _up_to_last_trained(tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    trained = np.flatnonzero(mask)
    end = trained[-1] + 1 if len(trained) else len(tokens)
    return tokens[:end], mask[:end]


def _number(row: Mapping[str, Any], column: str, where: str) -> float:
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if column in row:
        raise DataError(f"{where}: column {column!r} must be a finite number, got {value!r}")
    columns = ", ".join(name for name in row if not name.startswith("__"))
    raise DataError(f"{where}: there is no column {column!r} (columns: {columns})")


def _weights(mask: np.ndarray, where: str, *, cut: bool) -> np.ndarray:
    weights = np.array(mask, np.float32)
    weights[:1] = 0.0
    if not weights.any():
        why = "its completion begins after max_tokens" if cut else "its completion is empty"
        fix = "raise algorithm.max_tokens or set algorithm.on_long_row: skip" if cut else "remove the row"
        raise DataError(f"{where}: no token to train on, {why}; {fix}")
    return weights
