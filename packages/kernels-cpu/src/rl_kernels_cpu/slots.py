"""The index maps of :class:`rl_kernels_cpu.ragged.RaggedRows` for a number of heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_kernels_cpu.precision import exact
from rl_kernels_cpu.ragged import RaggedRows


@dataclass(frozen=True)
class Slots:
    """Maps states of U positions [U, heads, d] to C slots [C · heads, d], group by group [rows, heads, width, d].

    Attributes:
        heads: n.
        total: C · n.
        indices: int64 [C · n], the head of a position that each slot shows, as position · n + head.
        owners: int64 [U · n], the slot whose attention output is that of each head of a position.
        repeats: int64 [R · n], the further slots that show a head of a position to a sequence.
        repeated: int64 [R · n], the head of a position that each of them shows.
    """

    heads: int
    total: int
    indices: Tensor
    owners: Tensor
    repeats: Tensor
    repeated: Tensor

    @classmethod
    def of(cls, rows: RaggedRows, heads: int) -> Slots:
        """For ``heads`` heads; made once for all layers of a micro-batch."""
        if heads not in rows.slots:
            rows.slots[heads] = cls._of(rows, heads)
        return rows.slots[heads]

    @classmethod
    def _of(cls, rows: RaggedRows, heads: int) -> Slots:
        head = torch.arange(heads, device=rows.indices.device)
        begins, indices, start = [], [], 0
        for count, width in rows.shapes:
            shown = rows.indices[start : start + count * width].view(count, 1, width)
            indices.append((shown * heads + head[:, None]).flatten())
            row, place = torch.arange(count, device=head.device), torch.arange(width, device=head.device)
            slot = start * heads + row[:, None, None] * (heads * width) + place[:, None] + head * width
            begins.append(slot.view(count * width, heads))
            start += count * width
        slots = torch.cat(begins) if begins else rows.indices.new_zeros(0, heads)
        return cls(
            heads=heads,
            total=start * heads,
            indices=torch.cat(indices) if indices else rows.indices,
            owners=slots[rows.owners].flatten(),
            repeats=slots[rows.repeats].flatten(),
            repeated=(rows.indices[rows.repeats, None] * heads + head).flatten(),
        )

    def gather(self, states: Tensor) -> Tensor:
        """[U, heads, d] → [C · heads, d]."""
        return states.flatten(0, 1).index_select(0, self.indices)

    def gather_backward(self, gradient: Tensor) -> Tensor:
        """The gradient of a position is the sum of its slots'; those behind a sequence's end have none."""
        total = gradient.index_select(0, self.owners)
        if len(self.repeats):
            further = exact(gradient.index_select(0, self.repeats))
            total = exact(total).index_add_(0, self.repeated, further).to(gradient.dtype)
        return total.unflatten(0, (-1, self.heads))

    def scatter(self, states: Tensor) -> Tensor:
        """[C · heads, d] → [U, heads, d]."""
        return states.index_select(0, self.owners).unflatten(0, (-1, self.heads))

    def scatter_backward(self, gradient: Tensor) -> Tensor:
        """Slots that own no position have no gradient."""
        result = gradient.new_zeros(self.total, gradient.shape[2])
        return result.index_copy_(0, self.owners, gradient.flatten(0, 1))
