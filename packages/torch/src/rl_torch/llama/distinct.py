"""Cells that hold the same token: up to its attention the first layer computes the same for all of them.

What stands there is the token's embedding; positions come in behind the projections to queries, keys and values. So
these are made once for each distinct token of a micro-batch, and their gradients summed before going back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_torch.precision import sum_by
from rl_torch.small_integers import distinct

_MOST = 0.5
"""Distinct tokens per cell; with more, handing the results out costs what is saved."""


@dataclass(frozen=True)
class Distinct:
    """D distinct tokens in U cells.

    Attributes:
        first: int64 [D], a cell of each.
        kinds: int64 [U], which of them each cell holds.
    """

    first: Tensor
    kinds: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> Distinct | None:
        """For the tokens of all cells, int64 of any shape, on the CPU; None where they are too many."""
        tokens = ids.numpy().ravel()
        first, kinds = distinct(tokens, int(tokens.max(initial=0)) + 1)
        if len(first) > _MOST * len(kinds):
            return None
        return cls(torch.from_numpy(first), torch.from_numpy(kinds))

    def at(self, cells: Tensor | None) -> Tensor:
        """int64 [M]: ``kinds`` of some cells; None: of all."""
        return self.kinds if cells is None else self.kinds.index_select(0, cells)

    def total(self, gradient: Tensor, cells: Tensor | None) -> Tensor:
        """[M, …] → [D, …]: the gradient of what each of ``cells`` was handed, summed by token."""
        return sum_by(self.at(cells), gradient, len(self.first))
