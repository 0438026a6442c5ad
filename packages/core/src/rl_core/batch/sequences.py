"""SequenceBatch: ragged sequences with named columns, the one data type between all parts.

Nothing is padded. Token ``t`` of sequence ``i`` is ``tokens[offsets[i] + t]``, and every token
column is aligned with ``tokens``. Arrays that come out of Ray's object store are read-only
views of shared memory, so methods never write in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rl_core.batch.packing import balance, best_fit_decreasing
from rl_core.batch.ragged import Segments
from rl_core.batch.units import Units

UNIT = "unit"
"""Sequence column: sequences with equal ids (a DPO pair) are never split over micro-batches or ranks."""


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """B sequences of T tokens in all.

    Attributes:
        tokens: int32 [T].
        offsets: int64 [B+1], from 0 to T, never falling.
        token_columns: name → [T, ...] (``loss_mask``, ``sampled_logprobs``, ``advantages``, …).
        sequence_columns: name → [B, ...] (``reward``, ``group``, ``unit``, …).

    Raises:
        ValueError: a column of the wrong length or object dtype, offsets that fall: the message
            names the column or the sequence.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    token_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    sequence_columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_array("tokens", self.tokens, np.int32)
        _check_array("offsets", self.offsets, np.int64)
        _check_offsets(self.offsets, len(self.tokens))
        for name, column in self.token_columns.items():
            _check_column("token column", name, column, len(self.tokens), "tokens")
        for name, column in self.sequence_columns.items():
            _check_column("sequence column", name, column, len(self), "sequences")
        clash = set(self.token_columns) & set(self.sequence_columns)
        if clash:
            raise ValueError(f"SequenceBatch: {sorted(clash)[0]!r} is both a token column and a sequence column")

    @classmethod
    def from_lists(
        cls,
        sequences: Sequence[Sequence[int] | np.ndarray],
        *,
        token_columns: Mapping[str, Sequence[Any]] | None = None,
        sequence_columns: Mapping[str, Any] | None = None,
    ) -> SequenceBatch:
        """Build from one array per sequence; each token column is likewise one array per sequence."""
        lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        columns = {}
        for name, parts in (token_columns or {}).items():
            for index, (part, length) in enumerate(zip(parts, lengths, strict=True)):
                if len(part) != length:
                    raise ValueError(
                        f"SequenceBatch: token column {name!r} has {len(part)} values "
                        f"for sequence {index}, which has {length} tokens"
                    )
            columns[name] = np.concatenate([np.asarray(p) for p in parts]) if len(parts) else np.zeros(0, np.float32)
        tokens = np.concatenate([np.asarray(s, np.int32) for s in sequences]) if len(sequences) else _NO_TOKENS
        return cls(tokens, offsets, columns, {k: np.asarray(v) for k, v in (sequence_columns or {}).items()})

    @classmethod
    def concat(cls, batches: Iterable[SequenceBatch]) -> SequenceBatch:
        """Join batches in order; all must have the same columns."""
        parts = list(batches)
        if not parts:
            return cls(_NO_TOKENS, np.zeros(1, np.int64))
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        for index, part in enumerate(parts):
            for kind in ("token_columns", "sequence_columns"):
                odd = getattr(part, kind).keys() ^ getattr(first, kind).keys()
                if odd:
                    raise ValueError(
                        f"SequenceBatch.concat: batch {index} and batch 0 differ in {kind}: {', '.join(sorted(odd))}"
                    )
        starts = np.cumsum([0] + [len(p.tokens) for p in parts[:-1]])
        ends = np.concatenate([p.offsets[1:] for p in parts]) + np.repeat(starts, [len(p) for p in parts])
        return cls(
            np.concatenate([p.tokens for p in parts]),
            np.concatenate([first.offsets[:1], ends]),
            {n: np.concatenate([p.token_columns[n] for p in parts]) for n in first.token_columns},
            {n: np.concatenate([p.sequence_columns[n] for p in parts]) for n in first.sequence_columns},
        )

    def __len__(self) -> int:
        """Number of sequences B."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [B]: tokens per sequence."""
        return np.diff(self.offsets)

    @property
    def sequence_ids(self) -> np.ndarray:
        """int64 [T]: which sequence each token belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def sequence(self, index: int) -> slice:
        """The tokens of one sequence, as a slice into any token column."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def token_index(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """int64: positions of the tokens of ``indices``' sequences, in that order."""
        return self._segments(np.asarray(indices, np.int64)).index

    def _segments(self, indices: np.ndarray) -> Segments:
        starts = self.offsets[indices]
        return Segments(starts, self.offsets[indices + 1] - starts)

    def select(self, indices: np.ndarray | Sequence[int]) -> SequenceBatch:
        """The sequences at ``indices`` (integers or a boolean mask), in that order, with all columns."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64, copy=False)
        rows = self._segments(indices)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[indices])])
        return SequenceBatch(
            rows.take(self.tokens),
            offsets,
            {n: rows.take(c) for n, c in self.token_columns.items()},
            {n: c[indices] for n, c in self.sequence_columns.items()},
        )

    def share(self, indices: np.ndarray) -> SequenceBatch:
        """Like :meth:`select`, without a copy where ``indices`` (int64, no mask) count up one by one."""
        if not len(indices) or (np.diff(indices) != 1).any():
            return self.select(indices)
        first, end = int(indices[0]), int(indices[-1]) + 1
        tokens = slice(int(self.offsets[first]), int(self.offsets[end]))
        return SequenceBatch(
            self.tokens[tokens],
            self.offsets[first : end + 1] - self.offsets[first],
            {n: c[tokens] for n, c in self.token_columns.items()},
            {n: c[first:end] for n, c in self.sequence_columns.items()},
        )

    def with_columns(
        self,
        *,
        token: Mapping[str, np.ndarray] | None = None,
        sequence: Mapping[str, np.ndarray] | None = None,
    ) -> SequenceBatch:
        """A batch with columns added or replaced; arrays are shared, not copied."""
        return SequenceBatch(
            self.tokens,
            self.offsets,
            {**self.token_columns, **(token or {})},
            {**self.sequence_columns, **(sequence or {})},
        )

    def split_balanced(self, n: int) -> list[np.ndarray]:
        """``n`` lists of sequence indices (int64, ascending) of nearly equal token counts; units stay together.

        Deterministic. Some lists are empty where there are fewer units than ``n``.
        """
        if n == 1:
            return [np.arange(len(self), dtype=np.int64)]
        units = self._units()
        return [np.sort(units.members(bin)) for bin in balance(units.tokens, n)]

    def pack(self, max_tokens: int, *, at_least: int = 0) -> list[np.ndarray]:
        """Micro-batches of at most ``max_tokens`` tokens, as lists of sequence indices; units stay together.

        Args:
            max_tokens: token budget; a unit that is longer gets a micro-batch of its own.
            at_least: lower bound on the number of micro-batches (ranks must agree on it); further
                ones are filled by splitting evenly, and are empty only where units run out.
        """
        units = self._units()
        bins = best_fit_decreasing(units.tokens, max_tokens)
        if len(bins) < at_least:
            bins = balance(units.tokens, at_least)
        return [np.sort(units.members(bin)) for bin in bins]

    def minibatches(self, n: int, *, seed: int | None = None) -> list[SequenceBatch]:
        """``n`` batches of equally many units (±1), shuffled when ``seed`` is given.

        Unshuffled ones share this batch's arrays where they can.
        """
        units = self._units()
        order = np.arange(len(units))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(units))
        return [self.share(units.members(part)) for part in np.array_split(order, n)]

    def scatter(self, parts: Sequence[np.ndarray], values: Sequence[np.ndarray], *, per_token: bool) -> np.ndarray:
        """Merge per-shard results back into this batch's order.

        Args:
            parts: sequence indices of each shard, as from :meth:`split_balanced`.
            values: one array per shard: [T_shard] if ``per_token``, else [B_shard].

        Raises:
            ValueError: a shard's array has another length.
        """
        size = len(self.tokens) if per_token else len(self)
        dtype = next((v.dtype for v in values if len(v)), np.dtype(np.float32))
        merged = np.zeros(size, dtype)
        for indices, value in zip(parts, values, strict=True):
            if per_token:
                self._segments(indices).put(merged, value)
            else:
                merged[indices] = value
        return merged

    def _units(self) -> Units:
        return Units.of(self.sequence_columns.get(UNIT), self.lengths)


_NO_TOKENS = np.zeros(0, np.int32)


def _check_array(name: str, array: np.ndarray, dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"SequenceBatch: {name} must be a 1-D {np.dtype(dtype)} array, got {found}")


def _check_offsets(offsets: np.ndarray, total: int) -> None:
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != total:
        raise ValueError(f"SequenceBatch: offsets must run from 0 to {total} (the number of tokens)")
    falling = np.flatnonzero(np.diff(offsets) < 0)
    if len(falling):
        raise ValueError(f"SequenceBatch: offsets fall at sequence {falling[0]}")


def _check_column(kind: str, name: str, column: np.ndarray, size: int, of: str) -> None:
    if not isinstance(column, np.ndarray):
        raise ValueError(f"SequenceBatch: {kind} {name!r} must be a numpy array, got {type(column).__name__}")
    if column.dtype == object:
        raise ValueError(f"SequenceBatch: {kind} {name!r} holds Python objects; columns are plain numbers")
    if column.ndim == 0 or len(column) != size:
        found = "a scalar" if column.ndim == 0 else f"{len(column)} values"
        raise ValueError(f"SequenceBatch: {kind} {name!r} has {found} for {size} {of}")
