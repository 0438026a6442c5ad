"""Mixtures of experts, spread over data-parallel ranks: equal to plain transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron_helpers import backend, forward, train
from ranks import Ranks
from rl_core.contracts.model import AdapterSpec, ModelSpec
from rl_core.errors import ConfigError
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import (
    POLICY,
    model_spec,
    optimizer_spec,
    plain_model,
    plain_outputs,
    plain_training,
    random_batch,
)
from rl_torch.engine.testing.jobs import make_directory, merged, metrics_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

STEPS = 5
LORA = AdapterSpec("lora", rank=4, alpha=8.0)


def experts_folder(directory: Path, *, sum_to_one: bool = True) -> ModelSpec:
    """A Qwen3-MoE folder whose router prefers some experts, with the experts' weights one by one."""
    spec = model_spec(architecture="qwen3_moe", tie=False)
    extra = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": sum_to_one}
    model = plain_model(replace(spec, init={**spec.init, "extra": extra}))
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.1)
    model.save_pretrained(directory)
    return ModelSpec(path=str(directory), max_length=128)


@pytest.mark.parametrize(
    ("world", "parallel", "sum_to_one", "more"),
    [
        (1, {}, True, {}),
        (2, {"dp": 2, "ep": 2}, False, {}),
        (4, {"dp": 2, "ep": 2, "pp": 2}, True, {"activation_checkpointing": True, "packing": "packed"}),
        (4, {"dp": 4, "ep": 2}, True, {"distributed_optimizer": False}),
    ],
)
def test_five_steps_equal_plain_pytorch(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict[str, int], sum_to_one: bool, more: dict[str, Any]
) -> None:
    batch, spec = random_batch(), experts_folder(tmp_path, sum_to_one=sum_to_one)
    optimizer = optimizer_spec(learning_rate=3e-3, eps=1e-4)
    expected, parameters = plain_training(spec, optimizer, batch, STEPS)
    config = {"parallel": parallel, "max_tokens_per_microbatch": 60, **more}
    answers = ranks(train, world, batch=batch, steps=STEPS, spec=spec, optimizer=optimizer, config=config)
    for step, (loss, norm) in enumerate(expected):
        metrics = metrics_of(answers, step)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5 if step == 0 else 1e-4)
    assert set(answers[0]["weights"]) == set(parameters)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(answers[0]["weights"][name], parameter.detach().numpy(), atol=1e-5, err_msg=name)


def test_outputs_equal_the_plain_model_also_where_a_rank_has_no_sequence(ranks: Ranks, tmp_path: Path) -> None:
    spec, config = experts_folder(tmp_path), {"parallel": {"dp": 4, "ep": 4}, "max_tokens_per_microbatch": 30}
    for batch in (random_batch(9), random_batch(2)):
        answers = ranks(forward, 4, batch=batch, spec=spec, config=config, outputs=("logprobs",), temperature=0.8)
        values = plain_outputs(spec, batch, 0.8, ("logprobs",))["logprobs"]
        np.testing.assert_allclose(merged(batch, answers, "logprobs"), values, atol=1e-5)


def test_a_checkpoint_goes_on_with_experts_on_other_ranks(ranks: Ranks, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": random_batch(), "spec": experts_folder(tmp_path / "model")}
    options["optimizer"] = optimizer_spec(eps=1e-4)
    spread, path = {"parallel": {"dp": 2, "ep": 2}}, make_directory(tmp_path / "saved")
    whole = ranks(train, 2, **options, steps=4, config=spread)
    ranks(train, 2, **options, steps=2, save=path, config=spread)
    again = ranks(train, 2, **options, steps=2, restore=path, config=spread)
    elsewhere = ranks(train, 4, **options, steps=2, restore=path, config={"parallel": {"dp": 2, "pp": 2}})
    for step in range(2):
        assert metrics_of(again, step) == metrics_of(whole, step + 2)
        assert metrics_of(elsewhere, step)["loss"] == pytest.approx(metrics_of(whole, step + 2)["loss"], rel=1e-5)
    for name, weight in whole[0]["weights"].items():
        np.testing.assert_array_equal(again[0]["weights"][name], weight)


def test_the_way_through_megatron_and_back_changes_no_bit(ranks: Ranks, tmp_path: Path) -> None:
    spec = experts_folder(tmp_path / "model")
    assert spec.path is not None
    path = make_directory(tmp_path / "export")
    config = {"parallel": {"dp": 2, "ep": 2, "pp": 2}}
    ranks(train, 4, batch=random_batch(4), spec=spec, steps=0, export=path, config=config)
    ours, theirs = (plain_model(ModelSpec(path=p, max_length=128)).state_dict() for p in (path, spec.path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads(Path(path, "config.json").read_text())["architectures"] == ["Qwen3MoeForCausalLM"]
    written, read = (load_file(Path(p, "model.safetensors")) for p in (path, spec.path))
    assert {name: t.shape for name, t in written.items()} == {name: t.shape for name, t in read.items()}


def test_an_export_with_an_adapter_has_the_names_that_save_pretrained_writes(ranks: Ranks, tmp_path: Path) -> None:
    spec = experts_folder(tmp_path / "model")
    assert spec.path is not None
    path = make_directory(tmp_path / "export")
    options = {"batch": random_batch(4), "steps": 2, "optimizer": optimizer_spec(), "export": path}
    ranks(train, 2, **options, spec=replace(spec, adapter=LORA), config={"parallel": {"dp": 2, "ep": 2}})
    _, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    written, read = (load_file(Path(p, "model.safetensors")) for p in (path, spec.path))
    assert written.keys() == read.keys()
    changed = {name.split(".")[-2] for name in read if not torch.equal(written[name], read[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_experts_are_read_stacked_or_one_by_one(tmp_path: Path) -> None:
    from rl_backend_megatron.source import open_source
    from rl_torch.models import build_config, skeleton

    spec = experts_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    want = {n: t.clone() for n, t in plain_model(spec).state_dict().items() if ".experts." in n}
    assert {n for n in load_file(file) if ".experts." in n}.isdisjoint(want)  # published folders have them one by one
    for _ in range(2):
        source = open_source(spec, "lm", skeleton(build_config(spec), "lm"))
        assert all(torch.equal(source(name), tensor) for name, tensor in want.items())
        assert source("model.layers.0.mlp.experts.other") is None
        stacked = {n: t for n, t in load_file(file).items() if ".experts." not in n} | want
        save_file(stacked, file, metadata={"format": "pt"})


def test_adapters_are_put_on_attention_only(tmp_path: Path) -> None:
    spec = experts_folder(tmp_path)
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, replace(spec, adapter=LORA), optimizer_spec())
        adapted = {name.split(".")[-2] for name in made.role("policy").model.lora.pairs}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
        with pytest.raises(ConfigError) as caught:
            made.load(POLICY, replace(spec, adapter=replace(LORA, target_modules=("up_proj",))), optimizer_spec())
    assert str(caught.value) == (
        "model.adapter.target_modules: experts get no adapters; choose from q_proj, k_proj, v_proj, o_proj"
    )
