"""Save, restore, export and weight streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsdp2_helpers import (
    NLL,
    POLICY,
    backend,
    losses_of,
    make_directory,
    model_spec,
    optimizer_spec,
    plain_model,
    random_batch,
    save_without_room,
    train,
    train_on_while_saving,
)
from ranks import Ranks
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelSpec, Role
from rl_core.errors import RLError
from rl_core.model import reduce_metrics
from rl_torch.weights import load_buckets_into
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


@pytest.mark.parametrize("world", [1, 2])
def test_a_restored_run_continues_bit_exactly(single: Ranks, pair: Ranks, world: int, tmp_path: Path) -> None:
    ranks = single if world == 1 else pair
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    optimizer = optimizer_spec(schedule="linear", total_steps=5)
    whole = ranks(train, batch=batch, steps=5, optimizer=optimizer)
    ranks(train, batch=batch, steps=3, optimizer=optimizer, save=folder)
    rest = ranks(train, batch=batch, steps=2, optimizer=optimizer, restore=folder)
    for a, b in zip(whole, rest, strict=True):
        assert a["results"][3:] == b["results"]
        np.testing.assert_array_equal(a["random"], b["random"])
    for name, weight in whole[0]["weights"].items():
        np.testing.assert_array_equal(rest[0]["weights"][name], weight)


@pytest.mark.parametrize("direction", ["2 to 1", "1 to 2"])
def test_a_checkpoint_is_read_on_another_number_of_ranks(
    single: Ranks, pair: Ranks, direction: str, tmp_path: Path
) -> None:
    before, after = (pair, single) if direction == "2 to 1" else (single, pair)
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    saved = before(train, batch=batch, steps=3, save=folder)
    whole = before(train, batch=batch, steps=5)
    rest = after(train, batch=batch, steps=2, restore=folder)
    for name, weight in saved[0]["weights"].items():
        np.testing.assert_array_equal(rest[0]["before"][name], weight)
    for step in range(2):
        expected = reduce_metrics([r["results"][3 + step] for r in whole])
        assert reduce_metrics([r["results"][step] for r in rest]) == pytest.approx(expected, rel=1e-4)


def test_a_new_config_changes_hyperparameters_on_resume(single: Ranks, tmp_path: Path) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    single(train, batch=batch, steps=1, save=folder)
    slower = optimizer_spec(learning_rate=0.0, weight_decay=0.0)
    rest = single(train, batch=batch, steps=1, restore=folder, optimizer=slower)[0]
    for name, weight in rest["before"].items():
        np.testing.assert_array_equal(rest["weights"][name], weight)


@pytest.mark.parametrize(("world", "tie"), [(1, True), (2, True), (2, False)])
def test_an_export_loads_bit_equal_in_transformers(
    single: Ranks, pair: Ranks, world: int, tie: bool, tmp_path: Path
) -> None:
    folder = make_directory(tmp_path / "export")
    ranks = (single if world == 1 else pair)(
        train, batch=random_batch(), steps=2, spec=model_spec(tie=tie), export=folder
    )
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["use_cache"] is True
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = dict(model.named_parameters())
    assert set(loaded) == set(ranks[0]["weights"])
    for name, weight in ranks[0]["weights"].items():
        np.testing.assert_array_equal(loaded[name].detach().numpy(), weight)
    again = (single if world == 1 else pair)(train, batch=random_batch(), steps=0, spec=ModelSpec(path=folder))
    for name, weight in ranks[0]["weights"].items():
        np.testing.assert_array_equal(again[0]["before"][name], weight)


def test_a_reward_model_export_keeps_its_head(pair: Ranks, tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "export")
    role = Role("reward", trainable=True, head="scalar")
    loss = LossSpec("fsdp2_helpers:squared_scores", outputs=("scores", "values"))
    ranks = pair(train, batch=random_batch(), role=role, loss=loss, steps=2, export=folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    np.testing.assert_array_equal(model.score.weight.detach().numpy(), ranks[0]["weights"]["score.weight"])
    assert ranks[0]["weights"]["score.weight"].any()
    again = pair(train, batch=random_batch(), role=role, loss=loss, steps=0, spec=ModelSpec(path=folder))
    np.testing.assert_array_equal(again[0]["before"]["score.weight"], ranks[0]["weights"]["score.weight"])


def test_streamed_weights_fit_another_model_of_the_shape(single: Ranks) -> None:
    other = plain_model(model_spec(seed=9))
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        buckets = list(made.weights("policy"))
        load_buckets_into(other, buckets)
    for a, b in zip(other.parameters(), plain_model(model_spec()).parameters(), strict=True):
        assert torch.equal(a, b)


def test_buckets_do_not_change_when_training_goes_on() -> None:
    batch = random_batch()
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        buckets = list(made.weights("policy"))
        copies = [b.data.copy() for b in buckets]
        made.train("policy", batch, NLL, Scale.of(batch))
    for bucket, copy in zip(buckets, copies, strict=True):
        np.testing.assert_array_equal(bucket.data, copy)


def test_only_the_first_rank_yields_buckets(pair: Ranks) -> None:
    first, second = pair(train, batch=random_batch(), steps=0)
    assert first["weights"]
    assert second["weights"] == {}


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(RLError) as caught:
            made.restore("policy", str(tmp_path))
    assert str(caught.value) == f"{tmp_path} holds no fsdp2 checkpoint (no role.json)"


def test_two_roles_do_not_share_a_checkpoint_folder(tmp_path: Path) -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        made.load(Role("value", trainable=True, head="scalar"), model_spec(), optimizer_spec())
        made.save("policy", str(tmp_path))
        with pytest.raises(RLError) as caught:
            made.save("value", str(tmp_path))
        assert str(caught.value) == f"{tmp_path} already holds another role's checkpoint; save 'value' elsewhere"
        with pytest.raises(RLError) as caught:
            made.restore("value", str(tmp_path))
        assert str(caught.value) == f"{tmp_path} holds the role 'policy', not 'value'"


@pytest.mark.parametrize(
    ("saved", "read"),
    [
        ({"tp": 2}, {"dp": 2}),
        ({"dp": 2}, {"tp": 2, "sequence": True}),
        ({"replicate": 2, "dp": 1}, {"cp": 2}),
        ({"cp": 2}, {"replicate": 2, "dp": 1}),
    ],
)
def test_a_checkpoint_is_read_in_another_layout(
    pair: Ranks, tmp_path: Path, saved: dict[str, Any], read: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"batch": random_batch(), "optimizer": optimizer_spec(eps=1e-6)}
    path = make_directory(tmp_path / "saved")
    whole = losses_of(pair(train, **options, steps=4))
    pair(train, **options, steps=2, save=path, config={"parallel": saved})
    continued = losses_of(pair(train, **options, steps=2, restore=path, config={"parallel": read}))
    for ours, theirs in zip(continued, whole[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("config", [{}, {"precision": "fp16"}, {"cpu_offload": True}])
def test_a_checkpoint_written_in_the_background_continues_bit_exactly(
    pair: Ranks, tmp_path: Path, config: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"batch": random_batch(), "optimizer": optimizer_spec()}
    path = make_directory(tmp_path / "saved")
    config = {"async_save": True, **config}
    # The background write must hold the weights of step 2, not those of the steps that follow.
    whole = pair(train_on_while_saving, **options, steps=2, more=2, directory=path, config=config)
    assert whole[0]["returned before it was written"] or whole[0]["written"]
    continued = pair(train, **options, steps=2, restore=path, config=config)
    assert losses_of(continued) == losses_of(whole)[2:]
    for name, weight in whole[0]["weights"].items():
        np.testing.assert_array_equal(continued[0]["weights"][name], weight)


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_is_full_on_one_rank_is_told_to_the_run_and_training_goes_on(
    pair: Ranks, tmp_path: Path, background: bool
) -> None:
    folders = [make_directory(tmp_path / name) for name in ("first", "second")]
    said = pair(save_without_room, batch=random_batch(), directories=folders, config={"async_save": background})
    full = f"cannot write {folders[0]}/shards/rank-00001-000.safetensors: No space left on device"
    # In the background a rank hears of its own trouble only; the run asks all of them.
    assert said == [["saved" if background else full, "saved"], [full, "saved"]]
