"""Folders are read part by part: a rank never holds a whole model, and gets the same numbers as if it did."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsdp2_helpers import backend, losses_of, train
from ranks import Ranks
from rl_backend_fsdp2.loading import empty_model, fill
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.errors import EnvironmentProblem
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import POLICY, SCORES, model_spec, optimizer_spec, random_batch
from rl_torch.models import build_model
from rl_torch.policy import Support, wrap_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM


@pytest.fixture(scope="module", params=["tied", "untied in two files", "bf16"])
def folder(request: Any, tmp_path_factory: Any) -> ModelSpec:
    """A saved model."""
    path = tmp_path_factory.mktemp("model")
    spec = model_spec(tie=request.param != "untied in two files", architecture="qwen3", seed=9)
    model = build_model(spec, dtype=torch.bfloat16 if request.param == "bf16" else torch.float32)
    size = "60KB" if request.param == "untied in two files" else "1GB"
    model.save_pretrained(path, max_shard_size=size)
    return dataclasses.replace(spec, path=str(path), init=None)


@pytest.mark.parametrize("parallel", [{"dp": 2}, {"tp": 2}, {"tp": 2, "dp": 2}, {"replicate": 2, "dp": 2}])
def test_ranks_that_read_their_part_train_like_one_that_reads_all(
    single: Ranks, pair: Ranks, quad: Ranks, folder: ModelSpec, parallel: dict[str, Any]
) -> None:
    assert empty_model(folder, "lm") is not None
    options: dict[str, Any] = {
        "batch": random_batch(),
        "steps": 2,
        "spec": folder,
        "optimizer": optimizer_spec(eps=1e-6),
    }
    (plain,) = single(train, **options)
    ranks = (pair if np.prod(list(parallel.values())) == 2 else quad)(train, **options, config={"parallel": parallel})
    assert set(ranks[0]["before"]) == set(plain["before"])
    for name, weight in plain["before"].items():
        np.testing.assert_array_equal(ranks[0]["before"][name], weight, err_msg=name)
    for ours, theirs in zip(losses_of(ranks), losses_of([plain]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_parameters_have_no_storage_before_they_are_read_and_buffers_have(folder: ModelSpec) -> None:
    found = empty_model(folder, "lm")
    assert found is not None
    model, plan = found
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    assert all(name in plan for name, _ in model.named_parameters())


def test_what_is_tried_on_a_sample_is_tried_in_float32_and_alike_on_all_ranks(
    folder: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[torch.Tensor]] = []

    def check(sample: torch.nn.Module) -> Support:
        tried.append(list(sample.parameters()))
        return Support(packed=True)

    monkeypatch.setattr("rl_backend_fsdp2.build.check_supported", check)
    for seed in (1, 2):
        with backend(0, 1, free_port(), precision="bf16") as made:
            torch.manual_seed(seed)
            made.load(POLICY, folder, optimizer_spec())
    first, second = tried
    assert {p.dtype for p in first} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_new_scalar_head_starts_at_zero(pair: Ranks, folder: ModelSpec) -> None:
    ranks = pair(
        train,
        batch=random_batch(),
        steps=0,
        spec=folder,
        role=Role("value", trainable=True, head="scalar"),
        loss=SCORES,
    )
    assert not ranks[0]["before"]["score.weight"].any()


@pytest.mark.parametrize("config", [{"precision": "bf16"}, {"cpu_offload": True}, {}])
@pytest.mark.parametrize("quantised", [False, True])
def test_experts_and_their_buffers_are_those_of_transformers(
    config: dict[str, Any], quantised: bool, tmp_path: Path
) -> None:
    small = Glm4MoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = Glm4MoeForCausalLM(small)
    correction = "model.layers.1.mlp.gate.e_score_correction_bias"  # a buffer
    model.get_buffer(correction).normal_()
    model.save_pretrained(tmp_path)
    if quantised:
        quantise(tmp_path)
    want = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert correction in want
    spec = ModelSpec(path=str(tmp_path), max_length=64)
    with backend(0, 1, free_port(), **config) as made:
        made.load(POLICY, spec, OptimizerSpec(learning_rate=1e-3))
        got = dict(made.named_weights("policy"))
        made.export("policy", str(tmp_path / "export"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).state_dict()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
        assert torch.equal(exported[name], tensor), name


def quantise(folder: Path) -> None:
    """Make the feed-forward weights of a saved model float8, with a scale each."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in [n for n in weights if n.endswith("_proj.weight") and ".mlp." in n]:
        scale = weights[name].abs().max() / 448
        weights |= {name: (weights[name] / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    spec = model_spec()
    build_model(spec, dtype=torch.float32).config.save_pretrained(tmp_path)
    with backend(0, 1, free_port(), precision="bf16") as made, pytest.raises(EnvironmentProblem) as caught:
        made.load(POLICY, dataclasses.replace(spec, path=str(tmp_path), init=None), OptimizerSpec(learning_rate=1e-3))
    assert str(tmp_path) in str(caught.value)


def test_with_parameters_in_host_memory_buffers_are_where_the_model_runs(folder: ModelSpec) -> None:
    found = empty_model(folder, "lm")
    assert found is not None
    model, plan = found
    fill(wrap_model(model, "lm"), plan, torch.device("cpu"), compute_device=torch.device("meta"))  # for want of a GPU
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert {b.device.type for b in model.buffers()} == {"meta"}
