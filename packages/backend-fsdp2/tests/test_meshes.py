"""Every way to divide the work gives the losses, gradient norms and weights of one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsdp2_helpers import forward, losses_of, train
from ranks import Ranks
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import ModelSpec, Role
from rl_torch.engine.testing.examples import NLL, POLICY, SCORES, model_spec, optimizer_spec, random_batch
from rl_torch.engine.testing.jobs import make_directory

STEPS = 5
LOSS = LossSpec(NLL.function, outputs=("logprobs", "entropy"), temperature=0.8)

MESHES: dict[str, dict[str, Any]] = {
    "dp4": {"dp": 4},
    "hsdp2x2": {"replicate": 2, "dp": 2},
    "replicate4": {"replicate": 4, "dp": 1},
    "tp2": {"tp": 2},
    "tp2 sequence": {"tp": 2, "sequence": True},
    "tp2 dp2": {"tp": 2, "dp": 2},
    "tp2 dp2 sequence": {"tp": 2, "dp": 2, "sequence": True},
    "tp2 replicate2": {"tp": 2, "replicate": 2, "dp": 1},
    "cp2": {"cp": 2},
    "cp4": {"cp": 4},
    "cp2 dp2": {"cp": 2, "dp": 2},
    "cp2 tp2 sequence": {"cp": 2, "tp": 2, "sequence": True},
}


# Adam divides by the root of the second moment: with the usual 1e-8 a gradient that is nothing but rounding moves its
# weight as far as any other. Here gradients are about 3e-3 (a norm of 0.5 of 20,000 weights), their rounding is about
# sqrt(64) units of 2⁻²⁴ of that, and five steps of 1e-2 magnify it by at most 5e-2 / eps: to 7e-7.
OPTIMIZER = optimizer_spec(eps=1e-4)


def size(parallel: dict[str, Any]) -> int:
    return int(np.prod([v for k, v in parallel.items() if k != "sequence"]))


@pytest.fixture(scope="module")
def expected(single: Ranks) -> Any:
    """Losses and weights of one process, by model."""
    known: dict[Any, Any] = {}

    def of(spec: ModelSpec) -> Any:
        key = repr(spec)
        if key not in known:
            (ran,) = single(train, batch=random_batch(), steps=STEPS, loss=LOSS, spec=spec, optimizer=OPTIMIZER)
            known[key] = ran
        return known[key]

    return of


@pytest.mark.parametrize(
    ("mesh", "packing"),
    [
        *((mesh, ("padded", "packed")[index % 2]) for index, mesh in enumerate(MESHES)),
        ("tp2 dp2 sequence", "padded"),
        ("cp2 tp2 sequence", "padded"),
        ("cp2", "packed"),
    ],
)
def test_five_steps_on_a_mesh_equal_one_process(
    pair: Ranks, quad: Ranks, expected: Any, mesh: str, packing: str
) -> None:
    parallel = MESHES[mesh]
    # An odd number of words, so that tensor-parallel ranks hold unequal parts of the vocabulary.
    spec = model_spec(tie=packing == "packed", architecture="qwen3" if packing == "packed" else "llama", vocab=97)
    ranks = (pair if size(parallel) == 2 else quad)(
        train,
        batch=random_batch(),
        steps=STEPS,
        loss=LOSS,
        spec=spec,
        optimizer=OPTIMIZER,
        config={"parallel": parallel, "packing": packing, "max_tokens_per_microbatch": 90},
    )
    plain = expected(spec)
    for ours, theirs in zip(losses_of(ranks), losses_of([plain]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert set(ranks[0]["weights"]) == set(plain["weights"])
    for name, weight in plain["weights"].items():
        np.testing.assert_allclose(ranks[0]["weights"][name], weight, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mesh", ["tp2 dp2 sequence", "cp2 dp2", "cp2 tp2 sequence"])
def test_a_scalar_head_on_a_mesh_equals_one_process(single: Ranks, quad: Ranks, mesh: str) -> None:
    options: dict[str, Any] = {
        "batch": random_batch(),
        "steps": STEPS,
        "role": Role("value", trainable=True, head="scalar"),
        "loss": SCORES,
        "optimizer": OPTIMIZER,
    }
    ranks = quad(train, **options, config={"parallel": MESHES[mesh]})
    for ours, theirs in zip(losses_of(ranks), losses_of(single(train, **options)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("mesh", ["tp2 sequence", "cp2"])
def test_log_probs_on_a_mesh_equal_one_process(single: Ranks, pair: Ranks, mesh: str) -> None:
    options = {"batch": random_batch(), "outputs": ("logprobs", "entropy", "mean_logprobs", "logsumexp")}
    (plain,) = single(forward, **options)
    for found in pair(forward, **options, config={"parallel": MESHES[mesh]}):
        for name, values in plain["outputs"].items():
            np.testing.assert_allclose(found["outputs"][name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("saved", "read"), [("tp2 dp2", "hsdp2x2"), ("tp2 replicate2", "dp4"), ("hsdp2x2", "cp2 tp2 sequence")]
)
def test_a_mesh_reads_the_checkpoint_of_another_bit_by_bit(quad: Ranks, tmp_path: Path, saved: str, read: str) -> None:
    batch, folder = random_batch(), make_directory(tmp_path / "policy")
    before = quad(train, batch=batch, steps=1, save=folder, config={"parallel": MESHES[saved]})
    after = quad(train, batch=batch, steps=0, restore=folder, config={"parallel": MESHES[read]})
    for name, weight in before[0]["weights"].items():
        np.testing.assert_array_equal(after[0]["before"][name], weight, err_msg=name)


def test_an_architecture_without_a_plan_is_refused(pair: Ranks) -> None:
    spec = model_spec(architecture="mistral")
    with pytest.raises(AssertionError) as caught:
        pair(train, batch=random_batch(), spec=spec, role=POLICY, config={"parallel": {"tp": 2}})
    assert (
        "tensor parallelism has no plan for 'mistral' models; it has for llama, qwen2, qwen3\n"
        "    set backend.parallel.tp: 1"
    ) in str(caught.value)


def test_heads_that_cannot_be_divided_are_refused(quad: Ranks) -> None:
    with pytest.raises(AssertionError) as caught:
        quad(train, batch=random_batch(), config={"parallel": {"tp": 4}})
    assert (
        "backend.parallel.tp: the model's num_key_value_heads 2 cannot be divided over 4 ranks\n"
        "    choose a tp that divides 2"
    ) in str(caught.value)


def test_a_sliding_window_is_refused_under_context_parallelism(pair: Ranks) -> None:
    spec = model_spec(architecture="mistral")
    spec = dataclasses.replace(spec, init={**spec.init, "extra": {"sliding_window": 8}})
    with pytest.raises(AssertionError) as caught:
        pair(train, batch=random_batch(), spec=spec, config={"parallel": {"cp": 2}})
    assert (
        "context parallelism does not know the sliding window of 'mistral' models (8 tokens)\n"
        "    set backend.parallel.cp: 1"
    ) in str(caught.value)
