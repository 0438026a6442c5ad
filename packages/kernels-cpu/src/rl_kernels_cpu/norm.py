"""RMSNorm (Zhang and Sennrich 2019), as transformers computes it: in float32 up to the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_kernels_cpu.precision import exact


def forward(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``weight · x / sqrt(mean(x²) + epsilon)``, and for :func:`backward` the factor of each row.

    Args:
        x: [..., H].
        weight: [H].

    Returns:
        [..., H] in the dtype of ``x``, and [..., 1] in float32 (float64 for float64).
    """
    wide = exact(x)
    factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * factor).to(x.dtype).mul_(weight), factor


def backward(
    gradient: Tensor, x: Tensor, factor: Tensor, weight: Tensor, *, plus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients by ``x`` [..., H] and ``weight`` [H] from that by the result.

    With x̂ = factor · x and g = weight · gradient, the one by x is factor · (g - x̂ · mean(g · x̂)).

    Args:
        gradient: [..., H], overwritten.
        plus: [..., H], added to the gradient by ``x``.
    """
    normalized, g = exact(x) * factor, exact(gradient)
    along = (g * normalized).flatten(0, -2)
    mean = torch.mv(along, exact(weight)).div_(-x.shape[-1]).view(factor.shape)
    g = g.mul_(weight).addcmul_(normalized, mean)
    by_x = g.mul_(factor) if plus is None else torch.addcmul(exact(plus), g, factor)
    return by_x.to(x.dtype), along.sum(0).to(weight.dtype)


class Norm(torch.autograd.Function):
    """:func:`forward` as one operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """[..., H] in and out."""
        result, factor = forward(x, weight, epsilon)
        ctx.save_for_backward(x, factor, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """By ``x`` and ``weight``."""
        return *backward(gradient.clone(), *ctx.saved_tensors), None
