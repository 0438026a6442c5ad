"""Products of few rows with a weight that stays, on the CPU.

The usual product reorders the weight into blocks in every call; with the 8 to 64 rows of a decoding step that costs as
much as the arithmetic. oneDNN can multiply with a weight that was reordered once. On CPUs of its maker MKL does better
in float32 with a weight that was transposed once: it reads that as it stands. Where products of bfloat16 take longer
than of float32, they are computed in float32 and rounded.
"""

from __future__ import annotations

import torch
from rl_torch.cpu import bfloat16_is_slower, mkl_at_home
from rl_torch.llama.products import has_onednn
from torch import Tensor
from torch.nn import functional as F

# Below this many elements the reordered product is the slower one (measured: 128 × 384 is, 256 × 512 is not).
_FEWEST_ELEMENTS = 2**16

_TURNED_ROWS = 256
"""Transposed at once; more of them fall out of the cache, and take twice as long."""


class Product:
    """``x @ weight.T + bias`` for inputs [..., K].

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
        elif weight.numel() >= _FEWEST_ELEMENTS and has_onednn():
            self._reordered = torch.ops.mkldnn._reorder_linear_weight(self._plain)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._is_rounded:
            return self._product(x, self._bias)
        return self._product(x.float(), None if self._bias is None else self._bias.float()).to(x.dtype)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._reordered is None:
            return F.linear(x, self._plain, bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._reordered, bias, "none", [], "")
