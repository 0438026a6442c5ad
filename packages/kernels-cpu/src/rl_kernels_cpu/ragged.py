"""Training without padding on the CPU: all layers see one row of tokens, and attention alone gathers sequences from it.

Attention is a small part of the work on short sequences, so padding costs little there. The row
holds a prefix that several sequences share only once (:mod:`rl_kernels_cpu.prefixes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rl_torch.scores import UNKNOWN, attend
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from rl_kernels_cpu.precision import sum_by
from rl_kernels_cpu.small_integers import first_places

ATTENTION = "rl_ragged"
"""Name under which transformers knows the attention function below."""

# Sequences this much shorter than the longest of a group are attended to in another one.
_SHORTEST_SHARE = 0.8
_MIN_GROUP_TOKENS = 128


@dataclass(frozen=True)
class RaggedRows:
    """How B sequences are gathered from U positions for attention: C = Σ rows · width slots in groups of one width.

    Attributes:
        shapes: rows and width of each group.
        indices: int64 [C], the position that each slot reads; slots after a sequence's end read any.
        owners: int64 [U], the slot whose attention output is each position's.
        repeats: int64 [T-U], the slots that read a position owned by another slot (of a sequence with the same prefix).
        slots: what layers work out from this once for all of them, by number of heads.
    """

    shapes: tuple[tuple[int, int], ...]
    indices: Tensor
    owners: Tensor
    repeats: Tensor
    slots: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, indices: np.ndarray, offsets: np.ndarray, *, device: torch.device) -> RaggedRows:
        """Lay sequences out by length.

        Args:
            indices: int64 [T], the position of every token of every sequence; each of 0..U-1 occurs.
            offsets: int64 [B+1], where sequences begin in it.
        """
        lengths = np.diff(offsets)
        groups = _groups(lengths)
        shapes = tuple((len(group), int(lengths[group[0]])) for group in groups)
        order = np.concatenate(groups) if groups else np.zeros(0, np.int64)
        widths = np.repeat([width for _, width in shapes], [rows for rows, _ in shapes]).astype(np.int64)
        starts = np.cumsum(widths) - widths  # slot of each row's first position, in the order of rows
        slots = _ranges(starts, lengths[order])
        shown = indices[_ranges(offsets[:-1][order], lengths[order])]
        every = np.zeros(int(widths.sum()), np.int64)
        every[slots] = shown
        owners = slots[first_places(shown, int(shown.max(initial=-1)) + 1)]
        is_owner = np.zeros(len(every), bool)
        is_owner[owners] = True
        repeats = slots[~is_owner[slots]]
        shown_by, owned, repeated = (torch.from_numpy(found).to(device) for found in (every, owners, repeats))
        return cls(shapes, indices=shown_by, owners=owned, repeats=repeated)


class _Gather(torch.autograd.Function):
    """Positions [U, …] → slots [C, …]; the gradient of a position is the sum of its slots'."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: RaggedRows) -> Tensor:
        ctx.rows = rows
        return states.index_select(0, rows.indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Slots behind a sequence's end have no gradient: no token of it sees them.
        return sum_by(ctx.rows.indices, gradient, len(ctx.rows.owners)), None


class _Scatter(torch.autograd.Function):
    """Slots [C, …] → positions [U, …]; slots that own no position have no gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: RaggedRows) -> Tensor:
        ctx.rows = rows
        return states.index_select(0, rows.owners)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        result = gradient.new_zeros(len(ctx.rows.indices), *gradient.shape[1:])
        return result.index_copy_(0, ctx.rows.owners, gradient), None


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: RaggedRows | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside sequences: [1, heads, U, d] → [1, U, heads, d].

    Raises:
        RuntimeError: the caller did not say where the sequences are, or asks for another attention.
    """
    if rows is None:
        raise missing_rows()
    if odd := [name for name in UNKNOWN if options.get(name) is not None]:
        raise RuntimeError(f"ragged attention does not know {odd[0]}")
    gathered = [_Gather.apply(states[0].transpose(0, 1), rows) for states in (query, key, value)]
    shared = query.shape[1] // key.shape[1]
    outputs, start = [], 0
    for count, width in rows.shapes:
        q, k, v = (g[start : start + count * width].unflatten(0, (count, width)).transpose(1, 2) for g in gathered)
        start += count * width
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mask = _window(width, sliding_window, q)
        seen = attend(q, k, v, mask, scale=scaling, softcap=softcap, sinks=s_aux)
        outputs.append(seen.transpose(1, 2).flatten(0, 1))
    return _Scatter.apply(torch.cat(outputs), rows)[None], None


def missing_rows() -> RuntimeError:
    """For a model that was called without ``rows``."""
    return RuntimeError("ragged attention needs the rows of the micro-batch")


def use_ragged_attention(model: PreTrainedModel) -> None:
    """Have ``model`` use :func:`attention`; its forward then needs ``rows=``."""
    AttentionInterface.register(ATTENTION, attention)
    model.config._attn_implementation = ATTENTION


def _groups(lengths: np.ndarray) -> list[np.ndarray]:
    """Sequences of similar length, longest first."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[np.ndarray] = []
    start, tokens = 0, 0
    for place, sequence in enumerate(order):
        longest = int(lengths[order[start]])
        if tokens >= _MIN_GROUP_TOKENS and lengths[sequence] < _SHORTEST_SHARE * longest:
            groups.append(order[start:place])
            start, tokens = place, 0
        tokens += int(lengths[sequence])
    return [*groups, order[start:]] if len(order) else []


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[i], starts[i] + 1, …`` (``lengths[i]`` numbers) for every i, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def _window(width: int, window: int | None, like: Tensor) -> Tensor | None:
    """Additive mask [width, width] of a sliding window; None where plain causal attention will do."""
    if window is None or width <= window:
        return None
    place = torch.arange(width, device=like.device)
    back = place[:, None] - place[None, :]
    hidden = (back < 0) | (back >= window)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)
