"""Attention of one new token where queries share keys (grouped-query attention, Ainslie et al. 2023), on the CPU.

transformers copies the keys and values of the whole cache once for each query head that shares them, in every step. But
the queries of one group see the same keys, so they can stand where the queries of several positions usually do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "rl_grouped_decoding"
_FURTHER = {"position_bias", "cache", "s_aux", "softcap"}
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
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    if length > 1 or groups == heads or any(options.get(name) is not None for name in _FURTHER):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    together = query.reshape(rows, groups, heads // groups, width)
    seen = scaled_dot_product_attention(together, key, value, attn_mask=attention_mask, scale=scaling)
    return seen.reshape(rows, 1, heads, value.shape[3]), None


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Have ``model`` use :func:`attention`, where its layers let their attention be chosen and it is on the CPU."""
    if model.device.type == "cpu" and model._supports_attention_backend and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        model.config._attn_implementation = ATTENTION
