"""Products of few rows with a weight that stays, on the CPU.

The usual product reorders the weight into blocks in every call; with the 8 to 64 rows of a decoding step that costs as
much as the arithmetic. oneDNN can multiply with a weight that was reordered once. On CPUs of its maker MKL does better
in float32 with a weight that was transposed once: it reads that as it stands.
"""

from __future__ import annotations

import torch
from rl_torch.llama.products import has_onednn, mkl_at_home
from torch import Tensor
from torch.nn import functional as F

# Below this many elements the reordered product is the slower one (measured: 128 × 384 is, 256 × 512 is not).
_FEWEST_ELEMENTS = 2**16


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
        self._reordered: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Reorder the present weight; the copy takes as much memory as it does."""
        weight = self._weight.detach()
        if weight.dtype == torch.float32 and mkl_at_home():
            self._plain = weight.T.contiguous().T
        elif weight.numel() >= _FEWEST_ELEMENTS and has_onednn():
            self._reordered = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        if self._reordered is None:
            return F.linear(x, self._plain, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._reordered, self._bias, "none", [], "")
