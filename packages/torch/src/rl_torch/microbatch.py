"""From ragged sequences to what a model takes: micro-batches, and the ways to lay one out.

*Packed*: sequences follow each other in rows, ``position_ids`` restart at 0 and there is **no**
attention mask; transformers then isolates the sequences of a row (an all-ones mask would silently
join them). *Padded*: one sequence per row, filled up at the right; causal attention never looks
right, so no mask is needed either, and attention takes its fast path. Kernels may have a layout of their own
(:class:`Layout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from rl_core.batch import UNIT, SequenceBatch
from rl_core.batch.packing import best_fit_decreasing
from torch import Tensor

from rl_torch.estimates import CPU_ROW_TOKENS

Packing = Literal["auto", "packed", "padded"]

MAX_WASTE = 0.15
"""``auto`` on CPU pads when at most this fraction of the positions is padding."""

# Below this many tokens a micro-batch no longer pays for its fixed cost (about 3 ms).
_MIN_GROUP_TOKENS = 1024


class Layout(Protocol):
    """A way to lay micro-batches out that a kernel needs; equal ones make equal micro-batches, and hash alike."""

    def plan(self, shard: SequenceBatch, max_tokens: int) -> list[np.ndarray]:
        """See :func:`plan`."""
        ...

    def build(self, batch: SequenceBatch, *, device: torch.device, width_multiple: int) -> MicroBatch:
        """See :meth:`MicroBatch.build`."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. T tokens of B sequences stand in R × L positions; the rest is padding.

    Attributes:
        batch: the sequences, in the order of all flat outputs.
        input_ids: int64 [R, L].
        position_ids: int64 [R, L], or None for positions 0..L-1 in every row.
        scored: int64 [N]: the tokens that get a log-prob, as positions in ``batch.tokens``: those
            with a non-zero ``loss_mask`` (all, without that column) that are not first in their sequence.
        predictors: int64 [N]: position whose hidden state predicts each scored token.
        targets: int64 [N]: the scored tokens' ids.
        indices: int64 [T]: position (row · L + column) of every token.
        last: int64 [B]: position of each sequence's last token.
        sequence_ids: int64 [T]: which sequence each token belongs to.
        arguments: further ones for the model's forward, that a kernel's layout needs.
        is_filler: this is a stand-in on a rank that ran out of data; its loss must be 0.
    """

    batch: SequenceBatch
    input_ids: Tensor
    position_ids: Tensor | None
    scored: Tensor
    predictors: Tensor
    targets: Tensor
    indices: Tensor
    last: Tensor
    sequence_ids: Tensor
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_filler: bool = False

    @classmethod
    def build(
        cls,
        batch: SequenceBatch,
        *,
        packing: Packing | Layout = "auto",
        device: str | torch.device = "cpu",
        width_multiple: int = 1,
    ) -> MicroBatch:
        """Lay ``batch`` out for one forward pass on ``device``; L is a multiple of ``width_multiple``.

        Raises:
            ValueError: a sequence has no tokens.
        """
        if len(batch) and not batch.lengths.min():
            raise ValueError(f"sequence {int(batch.lengths.argmin())} of the micro-batch has no tokens")
        device = torch.device(device)
        if not isinstance(packing, str):
            return packing.build(batch, device=device, width_multiple=width_multiple)
        padded = packing == "padded" or (packing == "auto" and device.type == "cpu" and _waste(batch) <= MAX_WASTE)
        rows, starts = _one_per_row(batch) if padded else _shared_rows(batch, device.type)
        return cls._place(batch, rows, starts, packed=not padded, device=device, multiple=width_multiple)

    def of(self, batch: SequenceBatch) -> MicroBatch | None:
        """The same for ``batch``, as :meth:`build` would lay it out; None where its tokens or ``loss_mask`` differ."""
        own, other = (b.token_columns.get("loss_mask") for b in (self.batch, batch))
        alike = np.array_equal(self.batch.offsets, batch.offsets) and np.array_equal(self.batch.tokens, batch.tokens)
        if not alike or own is None or other is None:
            return None
        return replace(self, batch=batch) if np.array_equal(own, other) else None

    @classmethod
    def filler(
        cls, device: str | torch.device = "cpu", *, packing: Packing | Layout = "padded", width_multiple: int = 1
    ) -> MicroBatch:
        """A two-token micro-batch that keeps a rank without data in step with the others' collectives."""
        tokens = SequenceBatch(np.zeros(2, np.int32), np.array([0, 2], np.int64))
        built = cls.build(tokens, packing=packing, device=device, width_multiple=width_multiple)
        return replace(built, is_filler=True)

    @classmethod
    def _place(
        cls,
        batch: SequenceBatch,
        rows: np.ndarray,
        starts: np.ndarray,
        *,
        packed: bool,
        device: torch.device,
        multiple: int,
    ) -> MicroBatch:
        """Put sequence i into row ``rows[i]`` from column ``starts[i]`` on."""
        lengths, ids = batch.lengths, batch.sequence_ids
        width = -(-int((starts + lengths).max(initial=1)) // multiple) * multiple
        shape = (int(rows.max(initial=0)) + 1, width)
        indices = rows[ids] * width + starts[ids] + _within(batch)
        return cls.at_positions(batch, indices, shape, positions=packed, device=device)

    @classmethod
    def at_positions(
        cls,
        batch: SequenceBatch,
        indices: np.ndarray,
        shape: tuple[int, int],
        *,
        positions: bool,
        device: torch.device,
    ) -> MicroBatch:
        """Put every token into a position.

        Args:
            indices: int64 [T], of R · L positions; tokens that have everything before them in common may share one.
            shape: R and L.
            positions: whether ``position_ids`` are needed.
        """
        within = _within(batch)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        def placed(values: np.ndarray) -> Tensor:
            # Unused positions are token 0 at position 0, which makes each a segment of its own.
            filled = np.zeros(shape[0] * shape[1], np.int64)
            filled[indices] = values
            return tensor(filled).view(shape)

        scored = _scored(batch, within)
        return cls(
            batch=batch,
            input_ids=placed(batch.tokens),
            position_ids=placed(within) if positions else None,
            scored=tensor(scored),
            # By tokens: a position that several sequences share precedes the own tokens of each.
            predictors=tensor(indices[scored - 1]),
            targets=tensor(batch.tokens[scored].astype(np.int64)),
            indices=tensor(indices),
            last=tensor(indices[batch.offsets[1:] - 1]),
            sequence_ids=tensor(batch.sequence_ids),
        )


def plan(
    shard: SequenceBatch,
    max_tokens: int,
    *,
    packing: Packing | Layout = "auto",
    device: str | torch.device = "cpu",
    at_least: int = 0,
) -> list[np.ndarray]:
    """Micro-batches of ``shard`` as lists of sequence indices; units stay together.

    Packed micro-batches are filled to ``max_tokens``. Padded ones, and
    ``auto`` on CPU, take sequences by length and count padding towards ``max_tokens``; ``auto`` also
    starts a new micro-batch rather than let padding exceed :data:`MAX_WASTE`.

    Args:
        max_tokens: a unit that is longer gets a micro-batch of its own.
        at_least: lower bound on the number of micro-batches; further ones are empty.
    """
    if not isinstance(packing, str):
        parts = packing.plan(shard, max_tokens)
    elif packing == "packed" or (packing == "auto" and torch.device(device).type != "cpu"):
        parts = shard.pack(max_tokens)
    else:
        parts = _by_length(shard, max_tokens, max_waste=MAX_WASTE if packing == "auto" else 1.0)
    return parts + [np.zeros(0, np.int64)] * (at_least - len(parts))


def _by_length(shard: SequenceBatch, max_tokens: int, *, max_waste: float) -> list[np.ndarray]:
    lengths = shard.lengths
    if 0 < len(shard) * int(lengths.max(initial=0)) <= max_tokens and _waste(shard) <= max_waste:
        return [np.arange(len(shard), dtype=np.int64)]
    units = units_of(shard)
    longest = np.array([lengths[u].max() for u in units], np.int64)
    groups: list[np.ndarray] = []
    group: list[np.ndarray] = []
    tokens = rows = 0
    # Longest first, so that the first sequence of a group sets the width of its rows.
    for index in np.argsort(-longest, kind="stable"):
        unit, real = units[index], int(lengths[units[index]].sum())
        width = max(int(longest[index]), int(lengths[group[0]].max()) if group else 0)
        padded = (rows + len(unit)) * width
        wasteful = padded - (tokens + real) > max_waste * padded and tokens >= _MIN_GROUP_TOKENS
        if group and (padded > max_tokens or wasteful):
            groups.append(np.sort(np.concatenate(group)))
            group, tokens, rows = [], 0, 0
        group.append(unit)
        tokens += real
        rows += len(unit)
    if group:
        groups.append(np.sort(np.concatenate(group)))
    return groups


def units_of(shard: SequenceBatch) -> list[np.ndarray]:
    """Sequence indices of each unit, in order of unit id."""
    column = shard.sequence_columns.get(UNIT)
    if column is None:
        return list(np.arange(len(shard), dtype=np.int64)[:, None])
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(counts)[:-1]) if len(shard) else []


def _waste(batch: SequenceBatch) -> float:
    """Fraction of positions that would be padding with one sequence per row."""
    padded = len(batch) * int(batch.lengths.max(initial=0))
    return 1 - len(batch.tokens) / padded if padded else 0.0


def _one_per_row(batch: SequenceBatch) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(batch), dtype=np.int64), np.zeros(len(batch), np.int64)


def _shared_rows(batch: SequenceBatch, device_type: str) -> tuple[np.ndarray, np.ndarray]:
    lengths = batch.lengths
    if device_type != "cpu":
        return np.zeros(len(batch), np.int64), batch.offsets[:-1].copy()
    rows, starts = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.int64)
    capacity = max(CPU_ROW_TOKENS, int(lengths.max(initial=1)))
    for row, members in enumerate(best_fit_decreasing(lengths, capacity)):
        rows[members] = row
        ends = np.cumsum(lengths[members])
        starts[members] = ends - lengths[members]
    return rows, starts


def _within(batch: SequenceBatch) -> np.ndarray:
    """int64 [T]: position of each token in its sequence."""
    return np.arange(len(batch.tokens)) - batch.offsets[batch.sequence_ids]


def _scored(batch: SequenceBatch, within: np.ndarray) -> np.ndarray:
    scored = within > 0
    mask = batch.token_columns.get("loss_mask")
    if mask is not None:
        scored &= mask != 0
    return np.flatnonzero(scored)
