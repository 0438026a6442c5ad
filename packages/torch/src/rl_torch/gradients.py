"""The norm of a gradient."""

from __future__ import annotations

from collections.abc import Sequence

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
