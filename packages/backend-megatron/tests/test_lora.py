"""LoRA: the textbook's numbers in every layout; the base stays; checkpoints hold the adapter alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron_helpers import backend, policy_and_base, train
from ranks import Ranks
from rl_backend_megatron.lora import TARGETS, LoraPair
from rl_core.contracts.model import AdapterSpec, ModelSpec, Role
from rl_core.errors import ConfigError
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import (
    POLICY,
    SCORES,
    model_folder,
    model_spec,
    optimizer_spec,
    plain_model,
    random_batch,
)
from rl_torch.engine.testing.jobs import make_directory, merged, metrics_of, output_ranks
from safetensors.torch import load_file
from torch.nn.utils import parametrize

LORA = AdapterSpec("lora", rank=4, alpha=8.0, seed=5)
SOME = ("q_proj", "v_proj", "up_proj")
LAYOUTS = [(1, {}), (2, {"tp": 2}), (2, {"tp": 2, "sequence": True}), (2, {"pp": 2}), (2, {"dp": 2})]


class OneRank:
    """A group of one."""

    @staticmethod
    def size() -> int:
        return 1

    @staticmethod
    def rank() -> int:
        return 0


class Product(torch.nn.Module):
    """``W + alpha/rank · B A``."""

    def __init__(self, pair: LoraPair, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = pair.a, pair.b, scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * (self.b @ self.a)


def plain_lora(spec: ModelSpec, adapter: AdapterSpec, batch: Any, steps: int) -> tuple[list, dict]:
    """``[(loss, gradient norm)]`` and the merged weights of a transformers model with added products."""
    model = plain_model(spec)
    model.requires_grad_(False)
    trained = []
    for name, module in list(model.named_modules()):
        if name.split(".")[-1] in (adapter.target_modules or TARGETS):
            weight = module.weight
            pair = LoraPair(weight, name=f"{name}.weight", shape=weight.shape, row=False, spec=adapter, tp=OneRank)
            parametrize.register_parametrization(module, "weight", Product(pair, adapter.alpha / adapter.rank))
            trained += [pair.a, pair.b]
    adamw = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    record = []
    for _ in range(steps):
        total = torch.zeros(())
        for i in range(len(batch)):
            tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
            mask = torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)])
            log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0], -1)
            total = total - (log_p[:-1].gather(1, tokens[1:, None])[:, 0] * mask[1:]).sum()
        loss = total / float(batch.token_columns["loss_mask"].sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
        adamw.step()
        adamw.zero_grad()
        record.append((loss.item(), norm.item()))
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return record, {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("world", "parallel", "targets", "checkpointing"),
    [
        *((world, parallel, (), False) for world, parallel in LAYOUTS),
        (1, {}, SOME, False),
        (2, {"tp": 2}, SOME, False),
        (4, {"tp": 2, "pp": 2, "sequence": True}, SOME, False),
        (1, {}, (), True),
        (4, {"tp": 2, "pp": 2, "sequence": True}, (), True),
    ],
)
def test_training_equals_plain_lora(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict, targets: tuple[str, ...], checkpointing: bool
) -> None:
    adapter, batch = replace(LORA, target_modules=targets), random_batch()
    spec = model_folder(tmp_path, architecture="qwen2")
    expected, weights = plain_lora(spec, adapter, batch, 4)
    config = {
        "parallel": parallel,
        "max_tokens_per_microbatch": 100,
        "activation_checkpointing": checkpointing,
        "packing": "packed" if checkpointing else "padded",
    }
    answers = ranks(train, world, batch=batch, steps=4, spec=replace(spec, adapter=adapter), config=config)
    for step, (loss, norm) in enumerate(expected):
        metrics = metrics_of(answers, step)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5 if step == 0 else 1e-3)
    assert set(answers[0]["weights"]) == set(weights)
    for name, weight in weights.items():
        np.testing.assert_allclose(answers[0]["weights"][name], weight, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("world", "parallel"), [(1, {}), (4, {"tp": 2, "pp": 2})])
def test_the_base_of_a_policy_is_the_model_it_started_from(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict
) -> None:
    batch, spec = random_batch(), replace(model_folder(tmp_path), adapter=LORA)
    start = {name: p.detach().numpy() for name, p in plain_model(spec).named_parameters()}
    answers = ranks(policy_and_base, world, batch=batch, spec=spec, config={"parallel": parallel})
    for name, weight in start.items():
        np.testing.assert_array_equal(answers[0]["reference"][name], weight)
    changed = {name for name, weight in start.items() if (answers[0]["policy"][name] != weight).any()}
    assert changed == {name for name in start if name.split(".")[-2] in TARGETS and name.endswith("weight")}
    untrained = ranks(train, 1, batch=batch, steps=0, spec=replace(spec, adapter=None))
    assert untrained[0]["evaluated"].partial["loss"] == pytest.approx(
        -float((merged(batch, answers, "reference") * batch.token_columns["loss_mask"]).sum())
        / float(batch.token_columns["loss_mask"].sum()),
        rel=1e-5,
    )
    assert np.abs(merged(batch, answers, "policy") - merged(batch, answers, "reference")).max() > 0.01


@pytest.mark.parametrize(
    ("world", "parallel", "other"), [(2, {"tp": 2, "sequence": True}, {}), (4, {"pp": 2, "dp": 2}, {"tp": 2})]
)
def test_a_checkpoint_holds_the_adapter_alone_and_fits_another_layout(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict, other: dict
) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    given: dict[str, Any] = {"batch": batch, "spec": replace(model_spec(), adapter=LORA)}
    config = {"parallel": parallel}
    whole = ranks(train, world, steps=4, config=config, **given)
    ranks(train, world, steps=2, config=config, save=folder, **given)
    rest = ranks(train, world, steps=2, config=config, restore=folder, **given)
    assert [a["results"][2:] for a in whole] == [a["results"] for a in rest]
    moved = ranks(train, int(np.prod([*other.values()])), steps=2, config={"parallel": other}, restore=folder, **given)
    for step in range(2):
        assert metrics_of(moved, step) == pytest.approx(metrics_of(whole, 2 + step), rel=1e-4)
    stored = [name for file in (Path(folder) / "shards").iterdir() for name in load_file(file)]
    assert stored
    assert [key for key in stored if ".pairs." not in key] == []


def test_an_export_has_the_products_merged_in(ranks: Ranks, tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "export")
    given: dict[str, Any] = {"batch": random_batch(), "config": {"parallel": {"tp": 2}}}
    trained = ranks(train, 2, steps=2, spec=replace(model_spec(), adapter=LORA), export=folder, **given)
    again = ranks(train, 2, steps=0, spec=ModelSpec(path=folder), **given)
    for name, weight in trained[0]["weights"].items():
        np.testing.assert_array_equal(again[0]["before"][name], weight, err_msg=name)


def test_a_scalar_head_is_trained_beside_the_adapter(ranks: Ranks, tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "value")
    role = Role("value", trainable=True, head="scalar")
    loss = SCORES
    given: dict[str, Any] = {"batch": random_batch(), "role": role, "loss": loss}
    given |= {"spec": replace(model_spec(), adapter=LORA), "config": {"parallel": {"pp": 2}}}
    trained = ranks(train, 2, steps=3, save=folder, **given)
    assert trained[0]["weights"]["score.weight"].any()
    restored = ranks(train, 2, steps=0, restore=folder, **given)
    for name, weight in trained[0]["weights"].items():
        np.testing.assert_array_equal(restored[0]["before"][name], weight, err_msg=name)
    assert output_ranks(restored)[0]["evaluated"] == output_ranks(trained)[0]["evaluated"]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (replace(LORA, kind="dora"), "model.adapter.name: the megatron backend trains lora, not dora"),
        (
            replace(LORA, target_modules=("q_proj", "lm_head")),
            "model.adapter.target_modules: no layer 'lm_head'; "
            "choose from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
    ],
)
def test_adapters_that_cannot_be_trained_are_refused(adapter: AdapterSpec, message: str) -> None:
    with backend(0, 1, free_port()) as made, pytest.raises(ConfigError) as caught:
        made.load(POLICY, replace(model_spec(), adapter=adapter), optimizer_spec())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("target", "adapted"),
    [("q_proj", [0, 1]), ("self_attn.q_proj", [0, 1]), ("layers.1.self_attn.q_proj", [1])],
)
def test_layers_are_chosen_by_the_ends_of_their_names(target: str, adapted: list[int]) -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, replace(model_spec(), adapter=replace(LORA, target_modules=(target,))), optimizer_spec())
        pairs = made.role("policy").model.lora.pairs
    assert sorted(pairs) == [f"model.layers.{i}.self_attn.q_proj.weight" for i in adapted]


def test_a_role_without_an_adapter_has_no_base() -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(ValueError, match="base") as caught:
            made.load(Role("reference", trainable=False, base_of="policy"), model_spec(), None)
    assert str(caught.value) == "role 'reference' is the base of 'policy', which has no adapter"
