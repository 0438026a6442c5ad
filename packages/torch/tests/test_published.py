"""Weights that stream by get the names and values that ``save_pretrained`` writes for the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rl_torch.published import published
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {"tie_word_embeddings": True},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": LATENT | ROUTED,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
}


def model_of(architecture: str) -> PreTrainedModel:
    config = AutoConfig.for_model(architecture, **SHAPE, **MODELS[architecture])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def streamed(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    return dict(published(model, iter(weights.items()), shapes))


@pytest.mark.parametrize("architecture", MODELS)
def test_names_and_values_are_those_that_save_pretrained_writes(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    model.save_pretrained(tmp_path)
    written, ours = load_file(tmp_path / "model.safetensors"), streamed(model, stored(model))
    assert ours.keys() == written.keys()
    for name, tensor in written.items():
        assert torch.equal(ours[name], tensor), name


def test_experts_are_written_one_by_one() -> None:
    model = model_of("qwen3_moe")
    names = streamed(model, stored(model))
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in names
    assert not any("gate_up_proj" in name for name in names)


def test_a_model_that_was_read_from_stacked_experts_is_written_like_that(tmp_path: Path) -> None:
    model = model_of("qwen3_moe")
    model.save_pretrained(tmp_path, save_original_format=False)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again.save_pretrained(tmp_path / "again")
    assert streamed(again, stored(again)).keys() == load_file(tmp_path / "again" / "model.safetensors").keys()
    assert any("gate_up_proj" in name for name in streamed(again, stored(again)))


def test_a_model_without_storage_says_what_is_to_be_done() -> None:
    model = model_of("mixtral")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    ours = streamed(empty, stored(model))
    assert torch.equal(ours["model.layers.1.block_sparse_moe.experts.2.w1.weight"], _first_half(model, 2))


def _first_half(model: PreTrainedModel, expert: int) -> Tensor:
    return model.model.layers[1].mlp.experts.gate_up_proj[expert, :24].detach()


class FusedInFiles(LlamaForCausalLM):
    """Its files have queries, keys and values in one matrix."""


def fused_in_files() -> PreTrainedModel:
    parts = [f"self_attn.{x}_proj.weight" for x in "qkv"]
    converter = WeightConverter("self_attn.qkv_proj.weight", parts, [Chunk(dim=0)])
    register_checkpoint_conversion_mapping("FusedInFiles", [converter], overwrite=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FusedInFiles(AutoConfig.for_model("llama", **SHAPE))


def test_tensors_that_files_have_as_one_wait_for_each_other_and_for_no_more(tmp_path: Path) -> None:
    model = fused_in_files()
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.self_attn.qkv_proj.weight" in written
    ours = streamed(model, stored(model))
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[name], written[name]) for name in written)
    order = list(ours)
    assert order.index("model.layers.0.self_attn.qkv_proj.weight") < order.index("model.layers.0.mlp.up_proj.weight")


def test_tensors_that_are_to_be_joined_with_others_that_never_come_are_named() -> None:
    model = fused_in_files()
    weights = stored(model)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    del weights["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match="joined with others that did not come") as caught:
        list(published(model, weights.items(), shapes))
    assert str(caught.value).endswith("model.layers.1.self_attn.q_proj.weight, model.layers.1.self_attn.v_proj.weight")
