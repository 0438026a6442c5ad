"""Models of about 50k parameters, one for each architecture that people train adapters on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 96

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "smollm3": {},
    "olmo2": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "glm4": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "starcoder2": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"head_dim": None, "alibi": False, "new_decoder_architecture": False, "multi_query": True},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": _EXPERTS | {"mlp_only_layers": [0]},
    "mixtral": _LOCAL_EXPERTS,
    "phimoe": _LOCAL_EXPERTS,
    "gpt_oss": _LOCAL_EXPERTS | {"sliding_window": 16},
    "deepseek_v2": _LATENT | _DEEPSEEK | {"head_dim": None, "num_key_value_heads": 4, "topk_method": "greedy"},
    "deepseek_v3": _LATENT | _DEEPSEEK | {"head_dim": None, "num_key_value_heads": 4},
    "glm4_moe": _DEEPSEEK,
    "dots1": _DEEPSEEK,
    "llama4_text": _LOCAL_EXPERTS | {"intermediate_size_mlp": 48, "moe_layers": [1], "attention_chunk_size": 16},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 1,
    },
}


def tiny_model(name: str, *, auto: Any = AutoModelForCausalLM, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model of architecture ``name`` whose weights are random enough to tell positions and layers apart."""
    fields = {"attn_implementation": "eager", **_SIZES, **FIELDS[name], **changes}
    if fields["head_dim"] is None:  # computed from the others
        del fields["head_dim"]
    config = AutoConfig.for_model(name, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32).eval()
        for weight in model.parameters():
            weight.data.normal_(0, 0.2) if weight.ndim > 1 else weight.data.add_(torch.randn_like(weight) * 0.05)
    return model
