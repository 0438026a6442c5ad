"""Tiny models with random weights of every causal language model that transformers knows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
POSITIONS = 64

LARGEST = 3_000_000
"""Parameters; a larger model is a config with a field that the table does not make small."""

ENCODERS = frozenset(
    (
        *("bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small"),
        *("camembert", "data2vec-text", "electra", "ernie", "marian", "mbart", "megatron-bert", "mvp", "pegasus"),
        *("plbart", "prophetnet", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
        *("trocr", "whisper", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
    )
)
"""Encoders, and decoders of encoder-decoder models, which transformers can run as language models."""

REFUSED = {
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "it drafts tokens for another model, whose keys and values it reads",
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "it writes music, and transformers has no class for text of it"),
    "cpmant": "its positions count the padding",
    "emu3": "transformers does not find the text model's weights in a folder of the model for images",
    "gemma3n": "works where the package timm is installed (`pip install timm`): transformers builds its part for "
    "images with it",
    "mllama": "transformers cannot load its text model, once trained, without the part for images",
}
"""Families that cannot be trained here, because of what transformers' own code does."""

FAMILIES = tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - ENCODERS))

_GENERAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "n_positions": POSITIONS,
    "n_ctx": POSITIONS,
    "max_seq_len": POSITIONS,
    "sliding_window": 8,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "initializer_factor": 1.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Set where the family's config has the field."""

_LATENT: dict[str, Any] = {"num_key_value_heads": 4, "q_lora_rank": 16, "num_attention_heads": 4}
"""Multi-head latent attention has as many key heads as query heads."""

_INDEXED: dict[str, Any] = {**_LATENT, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 8}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
_LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

_GEMMA4: dict[str, Any] = {
    "layer_types": _SLIDING,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "final_logit_softcapping": 30.0,
}
_DRAFTER_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": 0,
    "hidden_size_per_layer_input": 0,
}
_DRAFTER: dict[str, Any] = {"text_config": _DRAFTER_TEXT, "backbone_hidden_size": 32}
_ROPE_BY_KIND = {
    kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    for kind in ("full_attention", "sliding_attention")
}
_IMAGES: dict[str, Any] = {"depth": 1, "num_heads": 4, "out_hidden_size": 32, "num_position_embeddings": 16}
_QWEN4: dict[str, Any] = {
    **_LINEAR,
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
    "hc_count": 2,
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "ngram_size": 2,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}

_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "glm4_moe_lite", "minicpm3"), _LATENT),
    "youtu": {**_LATENT, "pad_token_id": None},  # with one, transformers zeroes a weight whenever it loads the model
    "deepseek_v2": {**_LATENT, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _INDEXED),
    "longcat_flash": {**_LATENT, "num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": _SLIDING,
        "rope_parameters": _ROPE_BY_KIND,
    },
    "cpmant": {"dim_head": 8, "dim_ff": 48, "init_std": 0.2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "hidden_size": 32,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "exaone4": {"layer_types": _SLIDING},
    "gemma2": {"layer_types": _SLIDING, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"layer_types": _SLIDING},
    "cohere2": {"layer_types": _SLIDING},
    "gemma3n_text": {
        "layer_types": _SLIDING,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _GEMMA4),
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granitemoehybrid": {**_MAMBA, "layer_types": _HYBRID, "shared_intermediate_size": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "llama4_text": {"attention_chunk_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8},
    "ministral": {"head_dim": 8, "layer_types": _SLIDING},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8},
    "olmo3": {"layer_types": _SLIDING},
    "phi3": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _LINEAR),
    **dict.fromkeys(("qwen4_exp_text",), _QWEN4),
    **dict.fromkeys(("qwen3_5_vision", "qwen3_5_moe_vision", "qwen4_exp_vision"), _IMAGES),
    "gemma3n_vision": {"architecture": "test_convnext"},
    "gemma4_vision": {"position_embedding_size": 16},
    "gemma4_audio": {"subsampling_conv_channels": [8, 4], "output_proj_dims": 32, "hidden_size": 32},
    "kimi_linear": {**_LATENT, "linear_head_dim": 8, "linear_num_heads": 4, "layer_types": _HYBRID},
    "zamba": {
        "num_key_value_heads": 4,
        "head_dim": 16,
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "mamba_d_state": 8,
    },
    "zamba2": {
        "num_key_value_heads": 4,
        "head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "mamba_d_state": 8,
        "chunk_size": 16,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4]},
    "blt_local_encoder": {"hidden_size_global": 64},
    "blt_local_decoder": {"hidden_size_global": 64},
    "blt_global_transformer": {"hidden_size": 64, "head_dim": 16},
    "llama4_vision_model": {
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "image_size": 16,
        "patch_size": 8,
    },
    "mllama_text_model": {"cross_attention_layers": [1]},
    "mllama_vision_model": {
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
        "image_size": 16,
        "patch_size": 8,
    },
    "emu3": {"vocabulary_map": {"<image>": 90, "<|extra_200|>": 91}},
    "emu3_vqgan": {
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "codebook_size": 32,
        "hidden_size": 32,
    },
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFTER),
    "phi4_multimodal_audio": {
        "num_blocks": 1,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 8,
    },
    "phi4_multimodal_vision": {"image_size": 28, "crop_size": 28},
    "zaya": {"num_experts_per_tok": 1},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
}

_MUSIC: dict[str, Any] = {
    "text_encoder": {"model_type": "t5", "d_model": 32, "d_ff": 48, "num_layers": 1, "vocab_size": VOCABULARY},
    "audio_encoder": {"model_type": "encodec", "num_filters": 4, "hidden_size": 8, "codebook_size": 16},
    "decoder": {"vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2},
}
_REQUIRED: dict[str, dict[str, Any]] = {"musicgen": _MUSIC, "musicgen_melody": _MUSIC}
"""Without these there is no config of the family."""


def tiny_config(family: str, **changes: Any) -> PretrainedConfig:
    """A config of four small layers, in which everything that distinguishes the family is switched on."""
    return _tiny(CONFIG_MAPPING[family], {**_SPECIAL.get(family, {}), **changes})


def _tiny(kind: type[PretrainedConfig], changes: dict[str, Any]) -> PretrainedConfig:
    default = kind(**copy.deepcopy(_REQUIRED.get(kind.model_type, {})))
    fields = {name: value for name, value in _GENERAL.items() if _has(default, name)}
    if hasattr(default, "eos_token_id"):
        fields |= {name: _GENERAL[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name in kind.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            special = _SPECIAL.get(part.model_type, {})
            made = _tiny(type(part), {**special, **changes.pop(name, {})})
            fields[name] = made.to_dict() if made.model_type else made
    return kind(**copy.deepcopy({**_REQUIRED.get(kind.model_type, {}), **fields, **changes}))


def _has(config: PretrainedConfig, name: str) -> bool:
    """Whether the family has the field, and it is one to set."""
    of_class = getattr(type(config), name, None)
    if isinstance(of_class, property) and of_class.fset is None:
        return False
    try:
        return getattr(config, name, None) is not None
    except Exception:  # transformers has one of its own for what differs between layers
        return True


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """In float32 and evaluation mode, as transformers computes it without any of its faster kinds of attention."""
    kind = _writes(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind.from_config(config).parameters())
    if size > LARGEST:
        raise AssertionError(f"{config.model_type}: {size} parameters; make its config smaller")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config, attn_implementation="eager")
    return model.eval()


def _writes(config: PretrainedConfig) -> Any:
    """Who writes published folders of the family: the model for images too, where the one for text is only a part."""
    with torch.device("meta"):
        has_part = type(AutoModelForCausalLM.from_config(config).config) is not type(config)
    return AutoModelForImageTextToText if has_part else AutoModelForCausalLM


_ITS_OWN_RULES = frozenset(("diffllama",))
"""Refuse dropout."""


def probabilities(config: PretrainedConfig) -> dict[str, float]:
    """Fields that say how random a model in training is, by name."""
    return {name: value for name, value in config.to_dict().items() if _is_probability(name, value)}


def _is_probability(name: str, value: Any) -> bool:
    words = ("dropout", "pdrop", "drop_rate", "layerdrop")
    return any(word in name for word in words) and isinstance(value, int | float) and not isinstance(value, bool)


def switch_dropout_on(config: PretrainedConfig, value: float = 0.25) -> dict[str, float]:
    """Give every such field ``value``; returns them."""
    for name in probabilities(config) if config.model_type not in _ITS_OWN_RULES else ():
        setattr(config, name, value)
    return probabilities(config)
