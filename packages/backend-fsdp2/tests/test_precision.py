"""Precision, recomputation, offloading and compilation leave the training what it is in float32."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsdp2_helpers import losses_of, train
from ranks import Ranks
from rl_backend_fsdp2.sharding import COMPUTE_DTYPE, compile_layers
from rl_core.contracts.backend import LossSpec
from rl_torch.engine.testing.examples import NLL, model_spec, optimizer_spec, plain_model, random_batch

STEPS = 5


@pytest.fixture(scope="module")
def plain(single: Ranks) -> list[dict[str, float]]:
    """Five steps of one float32 process."""
    return losses_of(run(single))


def run(ranks: Ranks, **config: Any) -> list[dict[str, Any]]:
    # With Adam's usual eps of 1e-8 a gradient that is nothing but rounding moves its weight as far as any other.
    return ranks(train, batch=random_batch(), steps=STEPS, optimizer=optimizer_spec(eps=1e-4), config=config)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "parallel", [{"dp": 2}, {"replicate": 2, "dp": 1}, {"tp": 2}, {"tp": 2, "sequence": True}, {"cp": 2}]
)
def test_five_steps_in_16_bits_stay_close_to_float32(
    pair: Ranks, plain: list[dict[str, float]], precision: str, parallel: dict[str, Any]
) -> None:
    ranks = run(pair, precision=precision, parallel=parallel)
    found = losses_of(ranks)
    assert [ours["loss"] for ours in found] != [theirs["loss"] for theirs in plain]  # a single one may be, by chance
    for ours, theirs in zip(found, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-2)
    assert {w.dtype for w in ranks[0]["weights"].values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("how", ["selective", "full"])
@pytest.mark.parametrize("parallel", [{"dp": 2}, {"tp": 2}, {"cp": 2}])
def test_recomputed_activations_change_no_number(
    pair: Ranks, plain: list[dict[str, float]], how: str, parallel: dict[str, Any]
) -> None:
    ranks = run(pair, activation_checkpointing=how, parallel=parallel)
    for ours, theirs in zip(losses_of(ranks), plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("config", [{"precision": "fp32"}, {"precision": "bf16"}])
def test_offloading_to_the_host_changes_no_number(pair: Ranks, config: dict[str, Any]) -> None:
    kept, offloaded = (losses_of(run(pair, cpu_offload=off, **config)) for off in (False, True))
    for ours, theirs in zip(offloaded, kept, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("parallel", [{"dp": 2}, {"tp": 2, "sequence": True}])
def test_attention_sequence_by_sequence_changes_no_number(
    pair: Ranks, plain: list[dict[str, float]], parallel: dict[str, Any]
) -> None:
    config = {"attention": "varlen", "packing": "packed", "activation_checkpointing": "full", "parallel": parallel}
    for ours, theirs in zip(losses_of(run(pair, **config)), plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(single: Ranks, plain: list[dict[str, float]]) -> None:
    for ours, theirs in zip(losses_of(run(single, compile=True)), plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_compiled_layers_are_kept_by_the_vector_instructions_they_are_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_layers(plain_model(model_spec()))
    folder = tmp_path / "rl" / "inductor" / torch.backends.cpu.get_cpu_capability()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


def test_a_users_own_folder_for_compiled_layers_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compile_layers(plain_model(model_spec()))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_the_folder_that_imports_set_is_not_taken_for_the_users(tmp_path: Path) -> None:
    program = (
        "import os, rl_backend_fsdp2.backend\n"
        "from rl_backend_fsdp2.sharding import compile_layers\n"
        "from torch import nn\n"
        "compile_layers(nn.ModuleList([nn.Linear(1, 1)]))\n"
        "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])\n"
    )
    unset = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment = {**unset, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "rl" / "inductor")


def test_a_float16_overflow_lowers_the_scale_and_repeats_the_batch(single: Ranks) -> None:
    large = LossSpec(NLL.function, options={"factor": 1e3})
    options: dict[str, Any] = {"batch": random_batch(), "steps": 1, "loss": large, "optimizer": optimizer_spec()}
    (ran,) = single(train, **options, config={"precision": "fp16"})
    (exact,) = single(train, **options)
    (result,), (theirs,) = ran["results"], exact["results"]
    assert result.finite
    assert result.shared["loss_scale"] < 2.0**16
    assert result.shared["grad_norm"] == pytest.approx(theirs.shared["grad_norm"], rel=5e-2)
    assert any((ran["weights"][n] != w).any() for n, w in ran["before"].items())


def test_a_float16_gradient_that_no_scale_brings_down_is_reported(single: Ranks) -> None:
    loss = LossSpec(NLL.function, options={"factor": 1e9})
    (ran,) = single(train, batch=random_batch(), loss=loss, config={"precision": "fp16"})
    assert not ran["results"][0].finite
    for name, weight in ran["before"].items():
        np.testing.assert_array_equal(ran["weights"][name], weight)


def test_every_precision_has_a_compute_type() -> None:
    assert {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16} == COMPUTE_DTYPE
