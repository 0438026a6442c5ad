"""Names and splits, without ranks: every Hugging Face tensor has a place and comes back bit for bit."""

from __future__ import annotations

import pytest
import torch
from rl_backend_megatron.architecture import Architecture
from rl_backend_megatron.conversion import from_shards, stage_entries, tied_copy, to_shard
from rl_backend_megatron.parallelism import ParallelConfig
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_torch.engine.testing.examples import model_spec
from rl_torch.models import build_config, skeleton


def architecture_of(name: str = "qwen2", *, tie: bool = True, **fields: object) -> Architecture:
    config = build_config(model_spec(architecture=name, tie=tie, layers=4))
    for key, value in fields.items():
        setattr(config, key, value)
    return Architecture.of(config, ParallelConfig())


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_tensor_of_the_model_belongs_to_one_stage(name: str, tie: bool, stages: int) -> None:
    architecture = architecture_of(name, tie=tie)
    for head in ("lm", "scalar"):
        names = [
            hf
            for stage in range(stages)
            for entry in stage_entries(architecture, stage=stage, stages=stages, scalar=head == "scalar")
            for hf in entry.hf
        ]
        wanted = {n for n, _ in skeleton(architecture.config, head).named_parameters()}
        assert len(names) == len(set(names))
        assert set(names) == wanted


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", [1, 2])
def test_splitting_and_joining_changes_no_bit(name: str, size: int) -> None:
    architecture = architecture_of(name, tie=False)
    shapes = {n: p.shape for n, p in skeleton(architecture.config, "lm").named_parameters()}
    for entry in stage_entries(architecture, stage=0, stages=1, scalar=False):
        tensors = [torch.randn(shapes[n]) for n in entry.hf]
        shards = [to_shard(entry.kind, tensors, architecture, rank=rank, size=size) for rank in range(size)]
        again = from_shards(entry.kind, shards, architecture)
        assert len(again) == len(tensors)
        assert all(torch.equal(a, b) for a, b in zip(again, tensors, strict=True)), entry


def test_heads_of_a_group_stand_together_in_the_fused_layer() -> None:
    architecture = architecture_of()  # 4 heads of 8 in 2 groups
    q, k, v = (torch.arange(n).float().repeat_interleave(8) for n in (4, 2, 2))
    fused = to_shard("qkv", [q, k + 10, v + 20], architecture, rank=0, size=1)
    assert fused[::8].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert to_shard("qkv", [q, k + 10, v + 20], architecture, rank=1, size=2)[::8].tolist() == [2, 3, 11, 21]


def test_a_vocabulary_is_padded_alike_for_every_tp() -> None:
    assert architecture_of().padded_vocab == 128
    assert [architecture_of(vocab_size=n).padded_vocab for n in (128, 129, 1000)] == [128, 256, 1024]


@pytest.mark.parametrize(
    ("stage", "stages", "scalar", "tie", "has_copy"),
    [(0, 1, False, True, False), (1, 2, False, True, True), (0, 2, False, True, False), (1, 2, True, True, False)],
)
def test_only_the_last_of_several_stages_copies_a_tied_embedding(
    stage: int, stages: int, scalar: bool, tie: bool, has_copy: bool
) -> None:
    copy = tied_copy(architecture_of(tie=tie), stage=stage, stages=stages, scalar=scalar)
    assert (copy is not None) == has_copy


def test_rotary_frequencies_equal_those_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = architecture_of("llama")
    assert torch.equal(plain.rotary_frequencies(), LlamaRotaryEmbedding(plain.config).inv_freq)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    scaled = architecture_of("llama", rope_parameters=rope)
    assert torch.equal(scaled.rotary_frequencies(), LlamaRotaryEmbedding(scaled.config).inv_freq)
    assert not torch.equal(scaled.rotary_frequencies(), plain.rotary_frequencies())


@pytest.mark.parametrize(
    ("name", "fields", "what"),
    [
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("qwen3_moe", {"output_router_logits": True}, "output_router_logits"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type yarn"),
    ],
)
def test_what_has_no_counterpart_is_refused(name: str, fields: dict, what: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        architecture_of(name, **fields)
    assert str(caught.value) == (
        f"the megatron backend has no counterpart for {what} of this {name} model\n    use backend: {{name: fsdp2}}"
    )


def test_a_layout_that_was_not_checked_before_is_refused_when_the_model_is_read() -> None:
    with pytest.raises(ConfigError) as caught:
        Architecture.of(build_config(model_spec()), ParallelConfig(tp=4))
    assert str(caught.value) == (
        "backend.parallel.tp: the qwen2 model: key/value heads 2 / tp 4 leaves a remainder of 2\n"
        "    set backend.parallel.tp to one of 1, 2"
    )
