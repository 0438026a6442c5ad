"""Rotary embeddings whose frequencies depend on how long a sequence is, fixed once for a whole run.

With the RoPE types ``longrope`` (Ding et al. 2024; Phi-3, Phi-4) and ``dynamic`` transformers picks the frequencies by
the longest position of the batch, so that a short sequence would have other log-probs in a batch with a long one, and a
completion other ones after it has grown. Here ``model.max_length`` decides for all: what a sequence of that length has
by itself, all have. vLLM decides by its context length in the same way, so that trainers and generators agree.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_FIXED = "default"
"""The type whose frequencies transformers leaves alone."""


def fix_frequencies(model: nn.Module, max_length: int) -> None:
    """Give every rotary embedding of ``model`` the frequencies of a sequence of ``max_length`` tokens.

    Args:
        model: from transformers, with its frequencies on the device where they stay.
        max_length: of the run; 0 for the longest sequence the model knows.
    """
    module: Any
    for module in list(model.modules()):
        kinds: Any = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _varies(kinds):
            _fix(module, kinds, None, max_length)
            module.rope_type = _FIXED
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if _varies(kind):
                    _fix(module, kind, layer_type, max_length)
            module.rope_type = {layer_type: _FIXED if _varies(kind) else kind for layer_type, kind in kinds.items()}


def _varies(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _fix(module: Any, kind: str, layer_type: str | None, max_length: int) -> None:
    config = module.config
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    trained = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
    longest = max_length or config.max_position_embeddings
    name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    if longest > trained:
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
            config, getattr(module, name).device, seq_len=longest, layer_type=layer_type
        )
        module.register_buffer(name, frequencies, persistent=False)
    if "short_mscale" in parameters and "long_mscale" in parameters:
        # PhiMoE scales by the longest position in its forward, from the config.
        module.config = copy.deepcopy(config)
        chosen = parameters["long_mscale" if longest > trained else "short_mscale"]
        module.config.rope_parameters |= {"short_mscale": chosen, "long_mscale": chosen}
