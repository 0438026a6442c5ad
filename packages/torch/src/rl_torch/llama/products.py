"""Products with weights [N, K] of linear layers, and their gradients.

PyTorch's BLAS is MKL. On CPUs of other makers than MKL's oneDNN takes a tenth less time in float32 where the weight is
large, but compiles code anew for every number of rows, which changes from step to step: 0.6 ms for a product that is as
often in a step as there are layers. On CPUs of its own maker (:func:`rl_torch.cpu.mkl_at_home`) MKL takes a tenth
less, and for the gradients of weights everywhere.

Where products of bfloat16 take longer than of float32 (:func:`rl_torch.cpu.bfloat16_is_slower`), they are computed in
float32 and rounded once, which is what the instruction for them does, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_torch.cpu import bfloat16_is_slower, mkl_at_home

_FEWEST_ELEMENTS = 2**18
"""Of a weight; below, compiling costs what is saved."""

_FEWEST_ROWS = 512


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T`` plus ``bias`` [N], x [T, K]."""
    if _is_slow(x):
        return _rounded(product, x, weight, bias)
    return _onednn(x, weight, bias) if _is_large(x, weight) else F.linear(x, weight, bias)


def added(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """``residual`` [T, N] plus :func:`product`, in ``out`` if given."""
    if _is_slow(x):
        result = _rounded(added, residual, x, weight, bias)
        return result if out is None else out.copy_(result)
    if _is_large(x, weight):
        return torch.add(residual, _onednn(x, weight, bias), out=out)
    return torch.addmm(residual if bias is None else residual + bias, x, weight.T, out=out)


def by_input(gradient: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """The gradient by ``x``, plus ``plus``, which may be overwritten."""
    if _is_slow(gradient):
        return _rounded(by_input, gradient, weight, plus)
    if _is_large(gradient, weight):
        result = _onednn(gradient, weight.T, None)
        return result if plus is None else plus.add_(result)
    return torch.mm(gradient, weight) if plus is None else plus.addmm_(gradient, weight)


def by_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient by ``weight``."""
    if _is_slow(gradient):
        return _rounded(by_weight, gradient, x)
    return torch.mm(gradient.T, x)


def _is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is the faster one; in 16 bits it is PyTorch's BLAS already."""
    large = len(x) >= _FEWEST_ROWS and weight.numel() >= _FEWEST_ELEMENTS
    return large and x.dtype == torch.float32 and has_onednn() and not mkl_at_home()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _is_slow(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and bfloat16_is_slower()


def _rounded(compute: Callable[..., Tensor], *operands: Tensor | None) -> Tensor:
    """``compute`` in float32, rounded to the precision of the operands."""
    dtype = next(o.dtype for o in operands if o is not None)
    return compute(*(None if o is None else o.float() for o in operands)).to(dtype)


@functools.cache
def has_onednn() -> bool:
    """Whether this PyTorch has the operators that its own compiler uses for linear layers."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
