"""Generating: layers of Llama and its relatives taken apart, or attention without copies of keys."""

from __future__ import annotations

from functools import partial

from rl_torch.kernels.contract import Applied
from transformers import PreTrainedModel

from rl_kernels_cpu.grouped_attention import use_grouped_attention
from rl_kernels_cpu.llama_decoding import LlamaLayers


def why_not(model: PreTrainedModel) -> str | None:
    """Why neither can be used."""
    if LlamaLayers.fit(model):
        return None
    if not model._supports_attention_backend or model.config._attn_implementation != "sdpa":
        return f"{type(model).__name__} has an attention of its own, which cannot be replaced"
    return None


def apply(model: PreTrainedModel) -> Applied:
    """Layers where the model's are known, else attention."""
    if LlamaLayers.fit(model):
        return Applied(parts=("Llama layers",), remove=lambda: None, decoding=partial(LlamaLayers, model))
    before = model.config._attn_implementation
    use_grouped_attention(model)

    def remove() -> None:
        model.config._attn_implementation = before

    return Applied(parts=("grouped attention",), remove=remove)
