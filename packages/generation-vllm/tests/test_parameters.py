"""The names under which vLLM is given weights: those of published folders."""

from __future__ import annotations

from pathlib import Path

import torch
from rl_generation_vllm.parameters import ModelParameters, as_published
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

SHAPE = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}


def config_of(architecture: str, **fields: object) -> PretrainedConfig:
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return AutoConfig.for_model(architecture, num_key_value_heads=2, **SHAPE, **fields)


def test_fused_experts_are_given_one_by_one_as_files_have_them(tmp_path: Path) -> None:
    config = config_of("qwen3_moe", **EXPERTS)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    parameters = ModelParameters.of(config, trust_remote_code=False)
    assert parameters.published_as is config
    given, written = dict(as_published(config, model.state_dict().items())), load_file(tmp_path / "model.safetensors")
    assert given.keys() == written.keys()
    assert all(torch.equal(given[name], written[name]) for name in written)


def test_a_model_with_the_names_of_its_files_is_given_as_it_is() -> None:
    assert ModelParameters.of(config_of("qwen2"), trust_remote_code=False).published_as is None
