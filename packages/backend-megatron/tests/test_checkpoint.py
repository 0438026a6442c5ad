"""Save, restore, resharding, export and weight streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_helpers import backend, train
from ranks import Ranks
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import POLICY, model_folder, model_spec, optimizer_spec, random_batch
from rl_torch.engine.testing.jobs import make_directory, metrics_of, same_weights
from transformers import AutoModelForCausalLM


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


@pytest.mark.parametrize("distributed", [True, False])
def test_a_checkpoint_is_read_by_the_other_optimizer(ranks: Ranks, tmp_path: Path, distributed: bool) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    one, other = ({"parallel": {"dp": 2}, "distributed_optimizer": d} for d in (distributed, not distributed))
    ranks(train, 2, batch=batch, steps=2, config=one, save=folder)
    whole = ranks(train, 2, batch=batch, steps=4, config=one)
    rest = ranks(train, 2, batch=batch, steps=2, config=other, restore=folder)
    for step in range(2):
        assert metrics_of(rest, step) == pytest.approx(metrics_of(whole, 2 + step), rel=1e-5)


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
