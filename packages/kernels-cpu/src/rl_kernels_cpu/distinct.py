"""Equal tokens share the work of the first layer up to its attention.

The rotary embedding is applied after the projections to queries, keys and values, so until then equal tokens have equal
states. They are computed once for each distinct token of a micro-batch, and their gradients are summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_kernels_cpu.precision import sum_by
from rl_kernels_cpu.small_integers import distinct

_MOST = 0.5
"""Distinct tokens per position; with more, handing the results out costs what is saved."""


@dataclass(frozen=True)
class Distinct:
    """D distinct tokens in U positions.

    Attributes:
        first: int64 [D], a position of each.
        kinds: int64 [U], which of them each position holds.
    """

    first: Tensor
    kinds: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> Distinct | None:
        """For the tokens of all positions, int64 of any shape, on the CPU; None where too many are distinct."""
        tokens = ids.numpy().ravel()
        first, kinds = distinct(tokens, int(tokens.max(initial=0)) + 1)
        if len(first) > _MOST * len(kinds):
            return None
        return cls(torch.from_numpy(first), torch.from_numpy(kinds))

    def at(self, indices: Tensor | None) -> Tensor:
        """int64 [M]: ``kinds`` of some positions; None: of all."""
        return self.kinds if indices is None else self.kinds.index_select(0, indices)

    def total(self, gradient: Tensor, indices: Tensor | None) -> Tensor:
        """[M, …] → [D, …]: the gradient of what each of ``indices`` was handed, summed by token."""
        return sum_by(self.at(indices), gradient, len(self.first))
