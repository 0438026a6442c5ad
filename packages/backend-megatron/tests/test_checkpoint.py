"""Save, restore, resharding, export and weight streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron_helpers import (
    NLL,
    POLICY,
    backend,
    export_of_many_files,
    make_directory,
    metrics_of,
    model_folder,
    model_spec,
    optimizer_spec,
    output_ranks,
    plain_model,
    random_batch,
    save_and_go_on,
    train,
)
from ranks import Ranks
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelSpec, Role
from rl_core.errors import RLError
from rl_torch.weights import load_buckets_into
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def same_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, {}),
        (2, {"parallel": {"dp": 2}}),
        (2, {"parallel": {"dp": 2}, "distributed_optimizer": False}),
        (2, {"parallel": {"tp": 2, "sequence": True}}),
        (4, {"parallel": {"pp": 2, "dp": 2}}),
        (4, {"parallel": {"tp": 2, "dp": 2}, "precision": "bf16"}),
        (2, {"parallel": {"dp": 2}, "precision": "bf16", "distributed_optimizer": False}),
    ],
)
def test_a_restored_run_continues_bit_exactly(ranks: Ranks, tmp_path: Path, world: int, config: dict) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    given: dict[str, Any] = {"batch": batch, "optimizer": optimizer_spec(schedule="linear", total_steps=5)}
    whole = ranks(train, world, steps=5, config=config, **given)
    ranks(train, world, steps=3, config=config, save=folder, **given)
    rest = ranks(train, world, steps=2, config=config, restore=folder, **given)
    for a, b in zip(whole, rest, strict=True):
        assert a["results"][3:] == b["results"]
        np.testing.assert_array_equal(a["random"], b["random"])
    same_weights(rest[0]["weights"], whole[0]["weights"])


@pytest.mark.parametrize(
    ("before", "after", "tie"),
    [
        ({"tp": 2}, {}, True),
        ({"pp": 2}, {}, True),
        ({"pp": 2}, {}, False),
        ({"pp": 2, "dp": 2}, {"tp": 2}, True),
        ({}, {"tp": 2, "pp": 2}, True),
        ({"dp": 2}, {}, False),
    ],
)
def test_a_checkpoint_is_read_in_another_layout(
    ranks: Ranks, tmp_path: Path, before: dict, after: dict, tie: bool
) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    given: dict[str, Any] = {"batch": batch, "spec": model_spec(architecture="qwen3", tie=tie)}
    old, new = ({"parallel": parallel} for parallel in (before, after))
    saved = ranks(train, int(np.prod([*before.values()])), steps=3, config=old, save=folder, **given)
    whole = ranks(train, int(np.prod([*before.values()])), steps=5, config=old, **given)
    rest = ranks(train, int(np.prod([*after.values()])), steps=2, config=new, restore=folder, **given)
    same_weights(rest[0]["before"], saved[0]["weights"])
    for step in range(2):
        assert metrics_of(rest, step) == pytest.approx(metrics_of(whole, 3 + step), rel=1e-4)
    for name, weight in whole[0]["weights"].items():
        # A moment in the wrong place would show as 1e-2, the learning rate.
        np.testing.assert_allclose(rest[0]["weights"][name], weight, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("world", "parallel"), [(1, {}), (2, {"dp": 2}), (4, {"tp": 2, "pp": 2}), (2, {"pp": 2})])
def test_a_background_save_is_of_the_moment_it_was_asked_for(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict
) -> None:
    folders = [make_directory(tmp_path / name) for name in ("policy", "value")]
    answers = ranks(save_and_go_on, world, batch=random_batch(), directories=folders, config={"parallel": parallel})
    for found in answers:
        assert found["restored"] == found["at once"]


@pytest.mark.parametrize("distributed", [True, False])
def test_a_checkpoint_is_read_by_the_other_optimizer(ranks: Ranks, tmp_path: Path, distributed: bool) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    one, other = ({"parallel": {"dp": 2}, "distributed_optimizer": d} for d in (distributed, not distributed))
    ranks(train, 2, batch=batch, steps=2, config=one, save=folder)
    whole = ranks(train, 2, batch=batch, steps=4, config=one)
    rest = ranks(train, 2, batch=batch, steps=2, config=other, restore=folder)
    for step in range(2):
        assert metrics_of(rest, step) == pytest.approx(metrics_of(whole, 2 + step), rel=1e-5)


def test_a_new_config_changes_hyperparameters_on_resume(ranks: Ranks, tmp_path: Path) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    ranks(train, 1, batch=batch, steps=1, save=folder)
    slower = optimizer_spec(learning_rate=0.0, weight_decay=0.0)
    rest = ranks(train, 1, batch=batch, steps=1, restore=folder, optimizer=slower)[0]
    same_weights(rest["weights"], rest["before"])
    as_before = ranks(train, 1, batch=batch, steps=1, restore=folder)[0]
    assert any((as_before["weights"][name] != weight).any() for name, weight in as_before["before"].items())


@pytest.mark.parametrize(
    ("world", "parallel", "architecture", "tie"),
    [
        (1, {}, "llama", True),
        (2, {"tp": 2}, "qwen2", True),
        (2, {"pp": 2}, "qwen3", False),
        (4, {"tp": 2, "pp": 2}, "qwen2", False),
        (4, {"tp": 2, "pp": 2}, "qwen3", True),
    ],
)
def test_a_round_trip_through_megatron_changes_no_bit(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict, architecture: str, tie: bool
) -> None:
    spec = model_folder(tmp_path / "given", architecture=architecture, tie=tie)
    folder = make_directory(tmp_path / "export")
    ranks(train, world, batch=random_batch(), steps=0, spec=spec, export=folder, config={"parallel": parallel})
    given, exported = (AutoModelForCausalLM.from_pretrained(f) for f in (spec.path, folder))
    same_weights(*({n: p.detach().numpy() for n, p in m.named_parameters()} for m in (exported, given)))
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architectures"] == [type(given).__name__]
    assert config["dtype"] == "float32"
    assert (config["use_cache"], config["tie_word_embeddings"]) == (True, tie)


def test_an_export_has_the_trained_weights_and_can_be_trained_on(ranks: Ranks, tmp_path: Path) -> None:
    folder, config = make_directory(tmp_path / "export"), {"parallel": {"tp": 2, "pp": 2}}
    trained = ranks(train, 4, batch=random_batch(), steps=2, export=folder, config=config)
    again = ranks(train, 2, batch=random_batch(), steps=0, spec=ModelSpec(path=folder), config={"parallel": {"pp": 2}})
    same_weights(again[0]["before"], trained[0]["weights"])


def test_an_export_in_several_files_is_read_as_one(ranks: Ranks, tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "export")
    ranks(export_of_many_files, 1, directory=folder)
    assert len(list(Path(folder).glob("model-*-of-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for (name, a), b in zip(loaded.named_parameters(), plain_model(model_spec()).parameters(), strict=True):
        assert torch.equal(a, b), name
    again = ranks(train, 1, batch=random_batch(), steps=0, spec=ModelSpec(path=folder))
    same_weights(again[0]["before"], {n: p.detach().numpy() for n, p in loaded.named_parameters()})


def test_a_reward_model_export_keeps_its_head(ranks: Ranks, tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "export")
    loss = LossSpec("megatron_helpers:squared_scores", outputs=("scores", "values"))
    given: dict[str, Any] = {"role": Role("reward", trainable=True, head="scalar"), "loss": loss}
    config = {"parallel": {"tp": 2, "pp": 2}}
    trained = ranks(train, 4, batch=random_batch(), steps=2, export=folder, config=config, **given)[0]["weights"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    np.testing.assert_array_equal(model.score.weight.detach().numpy(), trained["score.weight"])
    assert trained["score.weight"].any()
    again = ranks(train, 1, batch=random_batch(), steps=0, spec=ModelSpec(path=folder), **given)
    same_weights(again[0]["before"], trained)


def test_only_rank_0_streams_weights(ranks: Ranks) -> None:
    answers = ranks(train, 4, batch=random_batch(), steps=0, config={"parallel": {"tp": 2, "dp": 2}})
    assert answers[0]["weights"]
    assert [a["weights"] for a in answers[1:]] == [{}, {}, {}]


def test_streamed_weights_fit_another_model_of_the_shape() -> None:
    other = plain_model(model_spec(seed=9))
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        buckets = list(made.weights("policy"))
        batch = random_batch()
        made.train("policy", batch, NLL, Scale.of(batch))  # must not reach the buckets
        load_buckets_into(other, buckets)
    for a, b in zip(other.parameters(), plain_model(model_spec()).parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(RLError) as caught:
            made.restore("policy", str(tmp_path))
    assert str(caught.value) == f"{tmp_path} holds no megatron checkpoint (no role.json)"


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


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "role.json").write_text(json.dumps({"format": 7, "role": "policy", "steps": 1, "ranks": 1}))
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(RLError) as caught:
            made.restore("policy", str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'role.json'}: checkpoint format 7, this version of rl-backend-megatron reads 2"
    )


def test_a_folder_that_lacks_weights_is_named_with_them(tmp_path: Path) -> None:
    from rl_core.errors import EnvironmentProblem
    from safetensors.torch import load_file, save_file

    spec = model_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with backend(0, 1, free_port()) as made, pytest.raises(EnvironmentProblem) as caught:
        made.load(POLICY, spec, optimizer_spec())
    assert str(caught.value).startswith(
        f"the model {tmp_path}: the files lack the weights model.layers.1.mlp.up_proj.weight\n    "
    )


def test_output_ranks_are_the_last_stage_of_each_copy(ranks: Ranks) -> None:
    answers = ranks(train, 4, batch=random_batch(), steps=0, config={"parallel": {"tp": 2, "pp": 2}})
    assert [a["place"].is_output for a in answers] == [False, False, True, False]
    answers = ranks(train, 4, batch=random_batch(), steps=0, config={"parallel": {"dp": 2, "pp": 2}})
    assert [(a["place"].dp_rank, a["place"].dp_size, a["place"].is_output) for a in answers] == [
        (0, 2, False),
        (1, 2, False),
        (0, 2, True),
        (1, 2, True),
    ]
    assert len(output_ranks(answers)) == 2
