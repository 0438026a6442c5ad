"""Products with weights [N, K] of linear layers, and their gradients.

PyTorch's BLAS is MKL. On CPUs of other makers than MKL's oneDNN takes a tenth less time in float32 where the weight is
large, but compiles code anew for every number of rows, which changes from step to step: 0.6 ms for a product that is as
often in a step as there are layers. On CPUs of its own maker (:func:`rl_kernels_cpu.cpu.mkl_at_home`) MKL takes a tenth
less, and for the gradients of weights everywhere.

Where products of bfloat16 take longer than of float32 (:func:`rl_kernels_cpu.cpu.bfloat16_is_slower`), they are
computed in float32 and rounded once, which is what the instruction for them does, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_kernels_cpu.cpu import bfloat16_is_slower, mkl_at_home

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


# Below this many elements the reordered product is the slower one (measured: 128 × 384 is, 256 × 512 is not).
_FEWEST_KEPT = 2**16

_TURNED_ROWS = 256
"""Transposed at once; more of them fall out of the cache, and take twice as long."""


class Product:
    """``x @ weight.T + bias`` for inputs [..., K] of few rows, with a weight that stays.

    The usual product reorders the weight into blocks in every call; with the 8 to 64 rows of a decoding step that costs
    as much as the arithmetic. oneDNN can multiply with a weight that was reordered once. On CPUs of its maker MKL does
    better in float32 with a weight that was transposed once: it reads that as it stands.

    Args:
        weight: [N, K], changed in place by others, who then call :meth:`refresh`.
        bias: [N] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self._plain = weight
        self._is_rounded = weight.dtype == torch.bfloat16 and bfloat16_is_slower()
        self._reordered: Tensor | None = None
        self._turned: Tensor | None = None  # kept, because memory of its size costs more than filling it
        self.refresh()

    def refresh(self) -> None:
        """Reorder the present weight; the copy takes as much memory as it does, or that of its float32."""
        weight = self._weight.detach()
        self._plain = weight.float() if self._is_rounded else weight
        if self._plain.dtype == torch.float32 and mkl_at_home():
            if self._turned is None:
                self._turned = torch.empty_like(self._plain.T, memory_format=torch.contiguous_format)
            for begin in range(0, len(self._plain), _TURNED_ROWS):
                rows = slice(begin, begin + _TURNED_ROWS)
                self._turned[:, rows] = self._plain[rows].T
            self._plain = self._turned.T
        elif weight.numel() >= _FEWEST_KEPT and has_onednn():
            self._reordered = torch.ops.mkldnn._reorder_linear_weight(self._plain)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._is_rounded:
            return self._product(x, self._bias)
        return self._product(x.float(), None if self._bias is None else self._bias.float()).to(x.dtype)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._reordered is None:
            return F.linear(x, self._plain, bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._reordered, bias, "none", [], "")
