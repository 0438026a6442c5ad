"""Products with weights [N, K] of linear layers, and their gradients.

By PyTorch's BLAS: oneDNN's linear layer multiplies 5 to 10 % faster, but compiles code anew for every number of tokens,
which changes from step to step (10 of 50 ms at 0.4M parameters, and hundreds of MB).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T`` plus ``bias`` [N], x [T, K]."""
    return F.linear(x, weight, bias)


def added(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """``residual`` [T, N] plus :func:`product`, in ``out`` if given."""
    return torch.addmm(residual if bias is None else residual + bias, x, weight.T, out=out)


def by_input(gradient: Tensor, weight: Tensor, *, plus: Tensor | None = None) -> Tensor:
    """The gradient by ``x``, plus ``plus``, which is overwritten."""
    return torch.mm(gradient, weight) if plus is None else plus.addmm_(gradient, weight)


def by_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient by ``weight``."""
    return torch.mm(gradient.T, x)
