"""The norm of a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_PIECE = 2**18
"""Elements that are summed in float32; the sums of such pieces are added in float64."""


def squared_norms(gradients: Sequence[Tensor]) -> Tensor:
    """float64 [N] on the CPU: the squared norm of each of N tensors.

    On the CPU PyTorch's own norm of float32 is off by 1e-4 where a tensor has a million elements, and takes twice as
    long as products of pieces with themselves.
    """
    if not gradients:
        return torch.zeros(0, dtype=torch.float64)
    if any(g.device.type != "cpu" or g.dtype != torch.float32 for g in gradients):
        return torch.stack([n.double() for n in torch._foreach_norm(list(gradients))]).square().cpu()
    pieces = [flat.split(_PIECE) for flat in (g.reshape(-1) for g in gradients)]
    sums = torch.stack([torch.dot(piece, piece) for parts in pieces for piece in parts]).double()
    owners = torch.repeat_interleave(torch.tensor([len(parts) for parts in pieces]))
    return torch.zeros(len(gradients), dtype=torch.float64).index_add_(0, owners, sums)


class Ranks(Protocol):
    """Those that a norm is summed over (:class:`rl_torch.engine.world.World`)."""

    device: torch.device

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` added up over ranks, in place."""
        ...


def norm_over_ranks(
    gradients: Sequence[Tensor], copies: Sequence[int], loss: float, ranks: Ranks
) -> tuple[float, bool]:
    """The norm of all ranks' gradients, and whether the loss is finite on every rank, in one exchange.

    Args:
        gradients: this rank's parts.
        copies: how many ranks hold each of them.
        loss: of this rank.
    """
    totals = torch.zeros(2, dtype=torch.float64)
    if gradients:
        totals[0] = (squared_norms(gradients) / torch.tensor(copies, dtype=torch.float64)).sum()
    totals[1] = 0.0 if math.isfinite(loss) else 1.0
    total, broken = ranks.sum(totals.to(ranks.device)).tolist()
    return math.sqrt(total) if total >= 0 else math.nan, not broken
