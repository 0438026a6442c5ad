"""Training and scoring: rows without padding, and layers of Llama and its relatives."""

from __future__ import annotations

from typing import Any

import torch
from rl_torch.architectures import only_windows
from rl_torch.kernels.contract import Applied, Use
from torch import Tensor
from transformers import PreTrainedModel

from rl_kernels_cpu.distinct import Distinct
from rl_kernels_cpu.layers import fits, use_own_layers, use_transformers_layers
from rl_kernels_cpu.ragged import use_ragged_attention
from rl_kernels_cpu.rows import OneRow
from rl_kernels_cpu.small_integers import distinct

_FEW = 0.9
"""Share of all positions; above it, leaving out the others costs as much as it saves."""


def why_not(model: PreTrainedModel) -> str | None:
    """Why ragged attention cannot take the place of the model's own."""
    name, before = type(model).__name__, model.config._attn_implementation
    if not model._supports_attention_backend or before not in ("sdpa", "eager"):
        return f"{name} has an attention of its own, which ragged rows cannot replace"
    if not only_windows(model.config):
        return f"{name} has layers that keep more than keys and values"
    return None


def apply(model: PreTrainedModel, use: Use) -> Applied:
    """Ragged attention, and layers with a backward pass of their own where nothing else happens inside of them."""
    before = model.config._attn_implementation
    use_ragged_attention(model)
    own_layers = not use.layers_fixed_by and fits(model)
    if own_layers:
        use_own_layers(model)

    def remove() -> None:
        model.config._attn_implementation = before
        if own_layers:
            use_transformers_layers(model)

    return Applied(
        parts=("ragged rows", "Llama layers") if own_layers else ("ragged rows",),
        remove=remove,
        layout=OneRow(),
        narrow=narrow if own_layers else None,
    )


def narrow(input_ids: Tensor, indices: Tensor) -> tuple[dict[str, Any], Tensor]:
    """See :data:`rl_torch.policy.Narrow`: the last layer computes some positions, the first one distinct tokens."""
    arguments: dict[str, Any] = {"distinct": Distinct.of(input_ids)}
    first, places = map(torch.from_numpy, distinct(indices.numpy(), input_ids.numel()))
    if len(first) > _FEW * input_ids.numel():
        return arguments, indices
    return {**arguments, "wanted": indices[first]}, places
