"""Folders are read part by part: a rank never holds a whole model, and gets the same numbers as if it did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsdp2_helpers import POLICY, backend, losses_of, model_spec, optimizer_spec, random_batch, train
from ranks import Ranks
from rl_backend_fsdp2.loading import empty_model, fill
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.errors import EnvironmentProblem
from rl_torch.models import build_model
from rl_torch.policy import wrap_model


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
    monkeypatch.setattr(
        "rl_backend_fsdp2.build.check_supported", lambda sample, packed: tried.append(list(sample.parameters()))
    )
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
        loss=LossSpec("fsdp2_helpers:squared_scores", outputs=("scores", "values")),
    )
    assert not ranks[0]["before"]["score.weight"].any()


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
