"""The gated activation of the feed-forward network: silu(gate) · up (SwiGLU, Shazeer 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """[N, F] in and out."""
    return F.silu(gate).mul_(up)


def backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by ``gate`` and ``up`` from that by the product; ``gradient`` is overwritten."""
    by_up = F.silu(gate).mul_(gradient)
    return torch.ops.aten.silu_backward(gradient.mul_(up), gate), by_up
