"""Attention whose scores are more than scaled products: soft-capped (Gemma 2), or with a sink (gpt-oss).

PyTorch's fused functions know neither, and would compute something else without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

UNKNOWN = ("position_bias", "cache")
"""Arguments of attention functions that ask for more than :func:`attend` does."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention [R, heads, L, d]; causal where there is no mask.

    Args:
        key, value: [R, heads, L, d], or with fewer heads that divide them.
        mask: additive, or true where visible; broadcastable to [R, heads, L, L].
        scale: of the products; None: 1 / sqrt(d).
        softcap: scores become ``softcap · tanh(scores / softcap)``.
        sinks: [heads], a score that takes part in each softmax and has no value (Xiao et al. 2024).
    """
    shared = query.shape[-3] // key.shape[-3]
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared > 1
        )
    if shared > 1:
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return shares[..., : key.shape[-2]] @ value
