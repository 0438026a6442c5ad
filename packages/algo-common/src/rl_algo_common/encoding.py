"""Rows to training sequences: single examples and preference pairs, and what happens to long ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.algorithm import AlgorithmBase
from rl_core.batch import UNIT, SequenceBatch
from rl_core.errors import DataError
from rl_core.long_rows import LongRows, OnLong

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import LossOn, Tokenizer

    from rl_algo_common.config import RowsConfig


class RowEncoder:
    """Encodes rows for algorithms that train on examples.

    The first token of a sequence has no log-probability, so its weight is always 0 and it does not
    count in a loss's denominator. A sequence ends with its last trained token (a chat template may
    put a newline after it): nothing depends on what follows, and a score is read at the end.

    Args:
        max_tokens: longest sequence; None for that of the model alone.
        on_long_row: what happens to longer ones.
    """

    def __init__(self, max_tokens: int | None = None, on_long_row: OnLong = "skip") -> None:
        self._most, self._on_long_row = max_tokens, on_long_row
        self._long = self._record("algorithm.max_tokens")

    def limit_to(self, max_length: int) -> LongRows:
        """Treat what is longer than the model's ``max_length`` like what is longer than the limit of the config.

        Returns:
            the record of the long rows from now on.
        """
        if self._most is None or max_length < self._most:
            self._most = max_length
            self._long = self._record("model.max_length")
        return self._long

    def _record(self, name: str) -> LongRows:
        fix = f"raise {name}, or set algorithm.on_long_row to skip or truncate"
        return LongRows(self._on_long_row, what="rows", limit=f"{name} {self._most}", fix=fix)

    def examples(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, loss_on: LossOn = "completion"
    ) -> SequenceBatch:
        """One sequence a row, with the token column ``loss_mask`` (float32 [T]).

        Raises:
            DataError: a row is too long under ``on_long_row: error``, or has no token to train on.

        A long row is left out under ``skip``, and under ``truncate`` where its completion begins beyond the limit.
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
            both = [self._completion(row, column, tokenizer, where) for column in ("chosen", "rejected")]
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

    def _completion(
        self, row: Mapping[str, Any], column: str, tokenizer: Tokenizer, where: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        where = f"{where} ({column})"
        example = {**row, "completion": row[column], "__where__": where}
        return self._encode(example, tokenizer, "completion", where)

    def _encode(
        self, row: Mapping[str, Any], tokenizer: Tokenizer, loss_on: LossOn, where: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        limit = self._most
        tokens, mask = _up_to_last_trained(*tokenizer.encode_example(row, loss_on))
        if limit is not None and len(tokens) > limit:
            lost = self._on_long_row == "truncate" and not np.any(mask[1:limit])
            place = where.removesuffix(" (chosen)").removesuffix(" (rejected)")
            # The error says which side it is; the count is of rows.
            self._long.record(where if self._on_long_row == "error" else place, len(tokens), lost=lost)
            if lost or self._on_long_row == "skip":
                return None
            tokens, mask = _up_to_last_trained(tokens[:limit], mask[:limit])
        return np.asarray(tokens, np.int32), _weights(mask, where)


class RowsAlgorithm(AlgorithmBase):
    """Base of algorithms that train on rows; add ``roles``, ``encode`` and ``step``.

    Attributes:
        rows: encodes rows, and deals with long ones as the config says.
    """

    config: RowsConfig

    def __init__(self, config: RowsConfig) -> None:
        super().__init__(config)
        self.rows = RowEncoder(config.max_tokens, config.on_long_row)

    def limit_rows(self, max_length: int) -> LongRows:
        """No row is longer than the model takes; see :meth:`RowEncoder.limit_to`."""
        return self.rows.limit_to(max_length)


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


def _weights(mask: np.ndarray, where: str) -> np.ndarray:
    weights = np.array(mask, np.float32)
    weights[:1] = 0.0
    if not weights.any():
        raise DataError(f"{where}: no token to train on, its completion is empty; remove the row")
    return weights
