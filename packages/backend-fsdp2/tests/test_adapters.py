"""Adapters: trained like peft's own on plain PyTorch, merged exactly, and switched off for the reference."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fsdp2_helpers import backend, losses_of, reference_beside_policy, train
from ranks import Ranks
from rl_backend_fsdp2 import adapters
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import AdapterSpec, ModelSpec, Role
from rl_core.errors import ConfigError, RLError
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import POLICY, SCORES, model_spec, optimizer_spec, plain_model, random_batch
from rl_torch.engine.testing.jobs import make_directory
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

STEPS = 5
OPTIMIZER = optimizer_spec(eps=1e-6, weight_decay=0.0)
LORA = AdapterSpec("lora", rank=4, alpha=8.0, seed=1)
ADAPTERS = {
    "lora": LORA,
    "dora": dataclasses.replace(LORA, kind="dora"),
    "adalora": AdapterSpec(
        "adalora", rank=2, alpha=8.0, initial_rank=4, prune_from_step=1, prune_to_step=4, orthogonality=0.1, seed=1
    ),
}


def spec_with(adapter: AdapterSpec, **changes: Any) -> ModelSpec:
    return dataclasses.replace(model_spec(**changes), adapter=adapter)


def plain_training(spec: ModelSpec, batch: SequenceBatch) -> tuple[list[float], torch.nn.Module]:
    """peft and PyTorch as their manuals say, one sequence at a time; returns losses and the model."""
    assert spec.adapter is not None
    model = plain_model(spec)
    adapters.attach(model, spec.adapter)
    adapters.initialise(model, spec.adapter)
    allocator = None
    if spec.adapter.kind == "adalora":
        config = adapters.saved_config(spec.adapter, model)
        allocator = peft.tuners.adalora.layer.RankAllocator(model, config, "default")
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=OPTIMIZER.learning_rate, eps=1e-6, weight_decay=0.0
    )
    losses = []
    for step in range(1, STEPS + 1):
        total = torch.zeros(())
        for i in range(len(batch)):
            tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
            mask = torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)])
            log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0], -1)
            total = total - (log_p[:-1].gather(1, tokens[1:, None])[:, 0] * mask[1:]).sum()
        loss = total / float(batch.token_columns["loss_mask"].sum())
        losses.append(loss.item())
        (loss + penalty(model, spec.adapter)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        if allocator is not None:
            prune(allocator, model, step, spec.adapter)
        optimizer.zero_grad()
    return losses, model


def penalty(model: torch.nn.Module, adapter: AdapterSpec) -> torch.Tensor:
    """Equation 4 of Zhang et al. 2023, as peft averages it."""
    if adapter.kind != "adalora":
        return torch.zeros(())
    terms = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(torch.norm(gram - torch.eye(len(gram)), p="fro"))
    return adapter.orthogonality * sum(terms) / len(terms)


def prune(allocator: Any, model: torch.nn.Module, step: int, adapter: AdapterSpec) -> None:
    """As peft's AdaLoraModel.update_and_allocate."""
    if step < adapter.prune_to_step:
        if allocator.budget_schedule(step)[0] < allocator.init_bgt:
            allocator.update_and_allocate(model, step)
        else:
            allocator.update_ipt(model)
    elif step == adapter.prune_to_step:
        _, allocator.pattern = allocator.update_and_allocate(model, step, force_mask=True)
    else:
        allocator.mask_using_rank_pattern(model, allocator.pattern)


MESHES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"dp": 2}) for kind in ADAPTERS),
    *((kind, {"cp": 2}) for kind in ADAPTERS),
    *((kind, {"replicate": 2, "dp": 1}) for kind in ADAPTERS),
    ("lora", {"tp": 2}),
    ("lora", {"tp": 2, "sequence": True}),
]


@pytest.mark.parametrize(("kind", "parallel"), MESHES)
def test_five_steps_equal_peft_on_plain_pytorch(pair: Ranks, kind: str, parallel: dict[str, Any]) -> None:
    spec = spec_with(ADAPTERS[kind])
    losses, model = plain_training(spec, random_batch())
    ranks = pair(
        train, batch=random_batch(), steps=STEPS, spec=spec, optimizer=OPTIMIZER, config={"parallel": parallel}
    )
    assert [m["loss"] for m in losses_of(ranks)] == pytest.approx(losses, rel=1e-5)
    merged = model.base_model
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.merge()
            weight = module.get_base_layer().weight.detach().numpy()
            np.testing.assert_allclose(ranks[0]["weights"][f"{name}.weight"], weight, atol=2e-5, err_msg=name)
    assert merged is not None
    assert set(ranks[0]["weights"]) == {n for n, _ in plain_model(spec).named_parameters()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("kind", "parallel"), MESHES)
def test_an_adapter_in_16_bits_stays_close_to_plain_pytorch(
    pair: Ranks, kind: str, parallel: dict[str, Any], precision: str
) -> None:
    spec = spec_with(ADAPTERS[kind])
    config = {"parallel": parallel, "precision": precision}
    ranks = pair(train, batch=random_batch(), steps=STEPS, spec=spec, optimizer=OPTIMIZER, config=config)
    assert [m["loss"] for m in losses_of(ranks)] == pytest.approx(plain_losses(kind), abs=2e-2)


@functools.cache
def plain_losses(kind: str) -> list[float]:
    return plain_training(spec_with(ADAPTERS[kind]), random_batch())[0]


def test_adalora_ends_with_the_rank_that_was_asked_for(single: Ranks) -> None:
    (ran,) = single(train, batch=random_batch(), steps=STEPS, spec=spec_with(ADAPTERS["adalora"]), optimizer=OPTIMIZER)
    ranks = [r.shared["adapter_rank"] for r in ran["results"]]
    assert ranks[0] == 4.0
    assert ranks[-1] == 2.0
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("config", [{"parallel": {"dp": 2}}, {"parallel": {"tp": 2}}])
def test_the_reference_is_the_policy_without_its_adapter(pair: Ranks, config: dict[str, Any]) -> None:
    options = {"batch": random_batch(), "spec": spec_with(LORA), "config": config}
    for found in pair(reference_beside_policy, **options):
        assert found["shared"]
        np.testing.assert_array_equal(found["policy before"], found["reference before"])
        np.testing.assert_array_equal(found["reference after"], found["reference before"])
        assert np.abs(found["policy after"] - found["policy before"]).max() > 1e-3
    first = pair(reference_beside_policy, **options)[0]
    for name, weight in plain_model(model_spec()).named_parameters():
        np.testing.assert_array_equal(first["reference weights"][name], weight.detach().numpy())


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_checkpoint_holds_only_the_adapter_and_continues_bit_exactly(pair: Ranks, kind: str, tmp_path: Path) -> None:
    spec, path = spec_with(ADAPTERS[kind]), make_directory(tmp_path / "saved")
    options: dict[str, Any] = {"batch": random_batch(), "spec": spec, "optimizer": OPTIMIZER}
    whole = pair(train, **options, steps=STEPS)
    pair(train, **options, steps=2, save=path)
    continued = pair(train, **options, steps=STEPS - 2, restore=path)
    assert losses_of(continued) == losses_of(whole)[2:]
    for name, weight in whole[0]["weights"].items():
        np.testing.assert_array_equal(continued[0]["weights"][name], weight, err_msg=name)
    stored = [name for file in (tmp_path / "saved" / "shards").iterdir() for name in load_file(file)]
    assert stored
    assert all(".lora_" in name or ".ranknum." in name for name in stored)


def test_a_checkpoint_with_an_adapter_needs_the_same_adapter(single: Ranks, tmp_path: Path) -> None:
    path = make_directory(tmp_path / "saved")
    single(train, batch=random_batch(), spec=spec_with(LORA), save=path)
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(RLError) as caught:
            made.restore("policy", path)
    assert str(caught.value) == (
        f"{path} was saved with a lora adapter, this run has none\n    resume with the model.adapter of that run"
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_export_is_the_merged_model_and_the_adapter_that_peft_reads(pair: Ranks, kind: str, tmp_path: Path) -> None:
    spec, path = spec_with(ADAPTERS[kind]), tmp_path / "export"
    ranks = pair(train, batch=random_batch(), steps=STEPS, spec=spec, optimizer=OPTIMIZER, export=str(path))
    merged = AutoModelForCausalLM.from_pretrained(path)
    for name, weight in merged.named_parameters():
        np.testing.assert_array_equal(weight.detach().numpy(), ranks[0]["weights"][name], err_msg=name)
    with_adapter = peft.PeftModel.from_pretrained(plain_model(spec), str(path / "adapter")).eval()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5, rtol=0)
    assert any("lora_" in name for name in load_file(path / "adapter" / "adapter_model.safetensors"))


def test_an_adapter_on_a_folder_that_is_read_in_parts(single: Ranks, pair: Ranks, tmp_path: Path) -> None:
    plain_model(model_spec()).save_pretrained(tmp_path)
    spec = dataclasses.replace(spec_with(ADAPTERS["dora"]), path=str(tmp_path), init=None)
    options: dict[str, Any] = {"batch": random_batch(), "steps": 2, "spec": spec, "optimizer": OPTIMIZER}
    for ours, theirs in zip(losses_of(pair(train, **options)), losses_of(single(train, **options)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_value_model_trains_its_head_beside_the_adapter(pair: Ranks) -> None:
    ranks = pair(
        train,
        batch=random_batch(),
        steps=2,
        spec=spec_with(LORA),
        role=Role("value", trainable=True, head="scalar"),
        loss=SCORES,
        optimizer=OPTIMIZER,
    )
    first = ranks[0]
    assert (first["before"]["score.weight"] == 0).all()
    assert (first["weights"]["score.weight"] != 0).any()
    np.testing.assert_array_equal(first["weights"]["model.norm.weight"], first["before"]["model.norm.weight"])


def test_chosen_modules_alone_get_an_adapter() -> None:
    model = plain_model(model_spec())
    adapters.attach(model, dataclasses.replace(LORA, target_modules=("q_proj", "v_proj")))
    adapted = {n.rpartition(".")[2] for n, m in model.named_modules() if hasattr(m, "base_layer")}
    assert adapted == {"q_proj", "v_proj"}


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        adapters.attach(plain_model(model_spec()), dataclasses.replace(LORA, target_modules=("q_proj", "w_pack")))
    assert str(caught.value) == (
        "model.adapter.target_modules: the model's layers have no linear module 'w_pack'; "
        "they have down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
