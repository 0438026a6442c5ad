"""The layers of Llama (Touvron et al. 2023) and its relatives, called without what transformers puts around them.

On the CPU a step of a small model costs as much in Python as in arithmetic. Here projections that read the same input
are one product, and of a prompt the last layer computes keys and values for all tokens, but the rest for the last only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rl_torch.kernels.contract import CacheLayer, KeyValueCache, Masks
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rl_kernels_cpu.grouped_attention import attend_once
from rl_kernels_cpu.layers import fits, projections
from rl_kernels_cpu.products import Product
from rl_kernels_cpu.rotary import Rotation


class LlamaLayers:
    """Calls a model of a known class; see :class:`rl_torch.kernels.contract.Decoding`.

    The model's weights stay its own, those of joined projections as views of one tensor. After they were replaced,
    :meth:`refresh`.

    Args:
        model: one that :meth:`fit` accepts, on the CPU.
    """

    def __init__(self, model: PreTrainedModel, cache: KeyValueCache, masks: Masks) -> None:
        self._embedding = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._types = getattr(model.config, "layer_types", None) or [""] * len(self._layers)
        self._norm = model.model.norm
        self._head = Product(model.lm_head.weight, model.lm_head.bias)
        self._cache = cache
        self._masks = masks
        self._like = next(model.parameters())

    @staticmethod
    def fit(model: PreTrainedModel) -> bool:
        """Whether the model's layers are as this class expects them: no adapters, no other activation."""
        return fits(model) and type(model).__name__.endswith("ForCausalLM")

    def refresh(self) -> None:
        """Take in weights that were replaced."""
        self._head.refresh()
        for layer in self._layers:
            layer.refresh()

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = self._masks.prefill(length, self._like)
        rows, ends = torch.arange(len(tokens)), lengths - 1
        ragged = bool((lengths < length).any())
        hidden = self._embedding(tokens)
        rotation = Rotation.of(self._rotary(hidden, torch.arange(length)[None]))
        for layer, kind, cached in self._with_cache():
            seen = mask[kind] if isinstance(mask, dict) else mask
            query, key, value = layer.project(hidden, rotation)
            key, value = cached.update(key, value)
            if layer is self._layers[-1]:
                query, hidden = query[rows, :, ends, None], hidden[rows, ends, None]
                seen = _row_of(seen, ends, length, self._like) if ragged or seen is not None else None
            hidden = layer.finish(hidden, layer.attend(query, key, value, seen))
        return self._logits(hidden)

    def decode(self, tokens: Tensor, positions: Tensor, *, longest: int, equal: bool) -> Tensor:
        mask = self._masks.decode(positions, longest + 1, self._like, equal=equal)
        hidden = self._embedding(tokens[:, None])
        rotation = Rotation.of(self._rotary(hidden, (positions[:1] if equal else positions)[:, None]))
        for layer, kind, cached in self._with_cache():
            query, key, value = layer.project(hidden, rotation)
            seen = layer.attend(query, *cached.update(key, value), mask[kind] if isinstance(mask, dict) else mask)
            hidden = layer.finish(hidden, seen)
        return self._logits(hidden)

    def _with_cache(self) -> Iterator[tuple[_Layer, str, CacheLayer]]:
        return zip(self._layers, self._types, self._cache.slot_layers, strict=True)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._head(_normalized(hidden[:, -1], self._norm))


class _Layer:
    """Attention and feed-forward network of one layer, before and after its keys and values meet the cache."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        query, key, value, output, gate, up, down = projections(layer)
        self._width = attention.head_dim
        self._heads = query.out_features // self._width
        self._groups = key.out_features // self._width
        self._scale = attention.scaling
        self._norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._qkv = _joined([query, key, value])
        self._output = Product(output.weight, output.bias)
        self._gate_up = _joined([gate, up])
        self._down = Product(down.weight, down.bias)
        self._before_attention = layer.input_layernorm
        self._before_mlp = layer.post_attention_layernorm

    def refresh(self) -> None:
        """Take in weights that were replaced."""
        for product in (self._qkv, self._output, self._gate_up, self._down):
            product.refresh()

    def project(self, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """[R, L, hidden] → queries [R, heads, L, d], keys and values [R, groups, L, d], of which the first two turn."""
        rows, length, _ = hidden.shape
        states = self._qkv(_normalized(hidden, self._before_attention))
        states = states.view(rows, length, self._heads + 2 * self._groups, self._width)
        turning, value = states.split([self._heads + self._groups, self._groups], dim=2)
        if self._norms[0] is not None:
            query, key = turning.split([self._heads, self._groups], dim=2)
            turning = torch.cat([_normalized(query, self._norms[0]), _normalized(key, self._norms[1])], dim=2)
        query, key = rotation.forward(turning).split([self._heads, self._groups], dim=2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[R, heads, L, d] → [R, L, heads · d]; causal where there is no mask and more than one query."""
        rows, heads, length, width = query.shape
        if length == 1:
            return attend_once(query, key, value, mask, self._scale).flatten(2)
        shared = heads // self._groups
        if shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self._scale
        )
        return seen.transpose(1, 2).reshape(rows, length, heads * width)

    def finish(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Add what attention saw [R, L, heads · d] and the feed-forward network to ``hidden`` [R, L, hidden]."""
        hidden = hidden + self._output(seen)
        gate, up = self._gate_up(_normalized(hidden, self._before_mlp)).chunk(2, dim=-1)
        return hidden + self._down(F.silu(gate).mul_(up))


def _joined(layers: Sequence[nn.Linear]) -> Product:
    """One linear map in the place of several, whose parameters become views of its own."""
    weight = _as_views([layer.weight for layer in layers])
    return Product(weight, None if layers[0].bias is None else _as_views([layer.bias for layer in layers]))


def _as_views(parameters: Sequence[Tensor]) -> Tensor:
    together = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, together.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return together


def _normalized(hidden: Tensor, norm: Any) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019), in float32 up to the weight, as transformers computes it."""
    if hidden.dtype == torch.float32:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    exact = F.rms_norm(hidden.float(), norm.weight.shape, None, norm.variance_epsilon)
    return norm.weight * exact.to(hidden.dtype)


def _row_of(mask: Tensor | None, ends: Tensor, length: int, like: Tensor) -> Tensor:
    """Of an additive mask [1, 1, L, L] (None: causal) the row of each prompt's last token: [P, 1, 1, L]."""
    if mask is not None:
        return mask[0, :, ends].transpose(0, 1)[:, :, None]
    hidden = torch.arange(length) > ends[:, None]
    return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
