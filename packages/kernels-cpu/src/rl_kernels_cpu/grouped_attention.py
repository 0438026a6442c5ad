"""Attention of one new token where queries share keys (grouped-query attention, Ainslie et al. 2023), on the CPU.

transformers copies the keys and values of the whole cache once for each query head that shares them, in every step. But
the queries of one group see the same keys, so they can stand where the queries of several positions usually do. And
PyTorch's attention for CPUs is made for many queries: in float32 a softmax between two products takes a fourth of its
time at 30 keys, and no more at 1,000 (two threads of a Zen 4; not in bfloat16, nor with one query for each key head).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "rl_grouped_decoding"
_FURTHER = {"position_bias", "cache"}
"""Arguments that ask for more than a softmax over scaled products."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """[R, heads, L, d] → [R, L, heads, d]; as transformers' own for everything but one new token per row.

    Args:
        key, value: [R, groups, T, d]; query head h belongs to group h // (heads / groups).
        attention_mask: additive, broadcastable to [R, 1, 1, T], or None.
    """
    if query.shape[2] > 1 or any(options.get(name) is not None for name in _FURTHER):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return attend_once(query, key, value, attention_mask, scaling), None


def attend_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of one query per row and head: [R, heads, 1, d] → [R, 1, heads, d].

    Args:
        key, value: [R, groups, T, d].
        mask: additive, [R, 1, 1, T] or None.
        scale: of the products; None: 1 / sqrt(d).
    """
    rows, heads, _, width = query.shape
    groups = key.shape[1]
    together = query.reshape(rows, groups, heads // groups, width)
    if groups < heads and query.dtype in (torch.float32, torch.float64):
        seen = _written_out(together, key, value, mask, width**-0.5 if scale is None else scale)
    else:
        seen = scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scale)
    return seen.reshape(rows, 1, heads, value.shape[3])


def _written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """As PyTorch's function, without a copy of keys and values in a cache: [R, groups, queries, d]."""
    q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    if mask is None:
        scores = torch.bmm(q, k.mT).mul_(scale)
    else:
        added = mask.expand(*query.shape[:3], key.shape[2]).flatten(0, 1)
        scores = torch.baddbmm(added, q, k.mT, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), v).view(*query.shape[:3], value.shape[3])


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Have ``model`` use :func:`attention`; its layers let their attention be chosen."""
    AttentionInterface.register(ATTENTION, attention)
    model.config._attn_implementation = ATTENTION
