"""Log-probs of targets by Liger's fused linear cross-entropy, which never has all logits at once."""

from __future__ import annotations

import torch
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
from torch import Tensor


def target_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """See :data:`rl_torch.policy.TargetLogprobs`.

    The cross-entropy of each token by itself is its negative log-prob. What the loss makes of it comes back as one
    gradient a token; the backward pass computes the logits again, chunk by chunk, and weighs each token's part with it.
    """
    scaled = hidden if temperature == 1.0 else hidden / temperature
    if bias is not None and temperature != 1.0:
        bias = bias / temperature
    return -liger_fused_linear_cross_entropy(
        scaled,
        weight,
        targets,
        bias=bias,
        reduction="none",
        accum_dtype=torch.float32,  # of the weight's gradient over chunks: 16-bit sums lose small contributions
    )
