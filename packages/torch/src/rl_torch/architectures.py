"""Differences in names and implementation between the architectures of transformers."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)


def attention_of(config: PretrainedConfig, auto: Any) -> str:
    """The implementation of attention that computes what transformers calls eager, faster where there is one.

    PyTorch's fused attention knows no soft-capped scores (Gemma 2) and leaves them out without a word; some families
    do not have it at all.

    Args:
        auto: the ``AutoModelFor…`` class that builds the model.
    """
    scalar = auto is AutoModelForSequenceClassification
    kinds: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if scalar else MODEL_FOR_CAUSAL_LM_MAPPING
    kind = kinds.get(type(config), None)
    fused = kind is None or kind._supports_sdpa  # code that comes with a folder is not in the mapping
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return "sdpa" if fused and not capped else "eager"


def vocabulary(config: PretrainedConfig) -> int:
    """Tokens in the vocabulary of a model, or of the text model inside one for images and text."""
    return config.get_text_config(decoder=True).vocab_size


def only_windows(config: PretrainedConfig) -> bool:
    """Whether layers look back to the beginning or over a window, and keep no other state (chunks, recurrence)."""
    types = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    return set(types) <= {"full_attention", "sliding_attention"}


def body_of(model: PreTrainedModel) -> Any:
    """The part of ``model`` without its head: what gives the last hidden states."""
    body = model.base_model
    return body if body is not model else model.model  # Llama 4 has it under another name than it says
