"""Estimates against the measured peak of real training, and the counts behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_helpers import backend, parameters_by_kind
from ranks import Ranks
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.memory import (
    MemorySettings,
    estimate_memory,
    kept_per_token,
    stage_adapter_parameters,
    stage_parameters,
)
from rl_backend_megatron.rating import memory_per_rank
from rl_core.contracts.model import AdapterSpec, ModelSpec, Role
from rl_core.contracts.rating import JobRole, MemoryEstimate
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import POLICY, optimizer_spec
from rl_torch.memory_probe import Case, Probe, shape_of_init

REFERENCE, VALUE = Role("reference", trainable=False), Role("value", trainable=True, head="scalar")

SMALL = {"architecture": "qwen3", "hidden_size": 192, "layers": 2, "heads": 6, "kv_heads": 2, "ffn": 512}
MEDIUM = {"architecture": "qwen2", "hidden_size": 384, "layers": 6, "heads": 6, "kv_heads": 2, "ffn": 1024}
LARGE = {"architecture": "llama", "hidden_size": 512, "layers": 6, "heads": 8, "kv_heads": 8, "ffn": 1408}
LARGE |= {"tie_embeddings": False}
LORA = AdapterSpec("lora", rank=8, alpha=16.0)
BACKEND = ("megatron", "rl_backend_megatron.backend:MegatronBackend", "rl_backend_megatron.config:MegatronConfig")

CASES = {
    "12M, tp 2": Case(MEDIUM, 4096, tokens=512, sequences=16, length=128, config={"parallel": {"tp": 2}}),
    "12M, tp 2, sequence, everything recomputed": Case(
        MEDIUM,
        4096,
        tokens=1024,
        sequences=16,
        length=128,
        config={"parallel": {"tp": 2, "sequence": True}, "activation_checkpointing": True},
    ),
    "28M, pp 2": Case(LARGE, 8192, tokens=512, sequences=16, length=128, config={"parallel": {"pp": 2}}),
    "12M, dp 2, bf16, reference": Case(
        MEDIUM,
        4096,
        tokens=512,
        sequences=16,
        length=128,
        config={"parallel": {"dp": 2}, "precision": "bf16"},
        roles=(POLICY, REFERENCE),
    ),
    "12M, dp 2, entropy, logits in chunks": Case(
        MEDIUM,
        8192,
        tokens=512,
        sequences=16,
        length=128,
        config={"parallel": {"dp": 2}, "logprob_chunk_tokens": 128},
        entropy=True,
    ),
    "12M, tp 2, LoRA, reference without weights": Case(
        MEDIUM,
        4096,
        tokens=1024,
        sequences=8,
        length=128,
        config={"parallel": {"tp": 2}},
        roles=(POLICY, replace(REFERENCE, base_of="policy")),
        adapter=LORA,
    ),
}


def estimate(case: Case) -> MemoryEstimate:
    found = memory_per_rank(MegatronConfig(name="megatron", **case.settings), case.job())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    return Probe(CASES, 2, backend=BACKEND).peaks()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(name: str, peaks: dict[str, int]) -> None:
    expected, peak = estimate(CASES[name]).peak, peaks[name]
    print(f"{name}: measured {peak / 2**20:.0f} MiB, estimated {expected / 2**20:.0f} MiB, {expected / peak:.3f}")
    assert abs(expected - peak) <= 0.2 * peak, f"measured {peak:,} bytes, estimated {expected:,}"


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_keeps_the_tensors_that_are_counted(architecture: str, precision: str) -> None:
    init = {**SMALL, "architecture": architecture}
    kept = [_saved_bytes({**init, "layers": layers}, precision) for layers in (1, 2)]
    settings = MemorySettings(compute_bytes=4 if precision == "fp32" else 2)
    assert (kept[1] - kept[0]) / 64 == kept_per_token(shape_of_init(init, 128), settings)


def _saved_bytes(init: dict[str, Any], precision: str) -> int:
    """Of all tensors that autograd keeps for a row of 64 tokens, parameters apart."""
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses apart
    with backend(0, 1, free_port(), precision=precision) as made:
        made.load(POLICY, ModelSpec(init=init, vocab_size=128, max_length=64), optimizer_spec())
        stage = made.role("policy").model.stage
        own = {p.untyped_storage().data_ptr() for p in stage.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with made.joined.active(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = stage(torch.zeros(1, 64, dtype=torch.int64), torch.arange(64)[None], None)
        assert out.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("parallel", "tied", "head"),
    [
        ({"tp": 2, "pp": 2}, True, "lm"),
        ({"tp": 2, "pp": 2}, False, "scalar"),
        ({"tp": 4}, True, "lm"),
        ({"pp": 2, "dp": 2}, False, "lm"),
    ],
)
@pytest.mark.parametrize("adapter", [None, replace(LORA, target_modules=("q_proj", "o_proj", "up_proj", "down_proj"))])
def test_parameters_gradients_and_optimizer_are_counted_exactly(
    ranks: Ranks, parallel: dict[str, int], tied: bool, head: Any, adapter: AdapterSpec | None
) -> None:
    init = {**SMALL, "heads": 8, "kv_heads": 4, "tie_embeddings": tied}
    spec = ModelSpec(init=init, vocab_size=200, max_length=64, adapter=adapter)
    role = replace(POLICY, head=head)
    found = ranks(parameters_by_kind, 4, spec=spec, role=role, config={"parallel": parallel})
    shape, settings = shape_of_init(init, 200), MemorySettings(**{"dp": 1, **parallel}, tokens=1)
    for rank in found:
        stage = rank["stage"]
        added = stage_adapter_parameters(shape, adapter, settings) if adapter else 0
        expected = stage_parameters(shape, head, settings, stage).total + added
        scored = shape.hidden_size if head == "scalar" and stage == settings.pp - 1 else 0
        trained = added + scored if adapter else expected
        assert (rank["parameters"], rank["trained"]) == (expected, trained)
        # Buffers are padded to whole cache lines.
        assert rank["gradients"] == pytest.approx(4 * trained, rel=0.02)
    whole = sum(rank["moments"] for rank in found)
    copies = settings.dp if settings.distributed else 1
    assert whole == sum(8 * rank["trained"] for rank in found) // copies
    most = estimate_memory([JobRole(role, shape)], settings, adapter=adapter)
    assert most.parameters in {4 * rank["parameters"] for rank in found}


def test_what_lasts_of_a_bf16_role_is_counted_by_copies() -> None:
    shape = shape_of_init(MEDIUM, 1024)
    count = stage_parameters(shape, "lm", MemorySettings(), 0)
    assert count.total == shape.parameters().total
    roles, bf16 = [JobRole(POLICY, shape)], MemorySettings(tokens=1, compute_bytes=2, dp=4)
    split = estimate_memory(roles, bf16)
    assert split.parameters == 2 * count.total
    # Both moments and the float32 weights, a quarter each; and what stepping the largest tensor takes.
    stepping = 2 * 4 * count.largest // 4
    assert split.optimizer == 12 * count.total // 4 + stepping
    whole = estimate_memory(roles, replace(bf16, distributed=False))
    assert whole.optimizer == 12 * count.total + 4 * stepping


def test_a_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    shape = shape_of_init(LARGE, 1024)

    def activations(microbatches: int) -> int:
        settings = MemorySettings(tokens=2048, pp=3, microbatches=microbatches)
        found = estimate_memory([JobRole(POLICY, shape)], settings).activations
        forward = estimate_memory([JobRole(REFERENCE, shape)], settings).activations
        return found - forward - 2 * 512 * 1408 * 4  # the gradient of the layer's largest matrix

    assert activations(8) == activations(3)
    assert 2 * activations(3) == 3 * activations(2)
    assert activations(2) == 2 * 2 * 2048 * kept_per_token(shape, MemorySettings())


def test_each_way_to_save_memory_saves_what_it_says() -> None:
    roles, base = (
        [JobRole(POLICY, shape_of_init(MEDIUM, 1024)), JobRole(VALUE, shape_of_init(MEDIUM, 1024))],
        MemorySettings(),
    )
    plain, recomputed = (estimate_memory(roles, replace(base, recompute=flag)) for flag in (False, True))
    assert plain.activations > 3 * recomputed.activations
    split = estimate_memory(roles, replace(base, tp=2))
    sequence = estimate_memory(roles, replace(base, tp=2, sequence=True))
    assert plain.activations > split.activations > sequence.activations
    chunked = estimate_memory(roles, replace(base, chunk_tokens=64))
    assert chunked.logits < plain.logits


def test_a_shape_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the shape of role 'policy' is unknown$"):
        estimate_memory([JobRole(POLICY, None)], MemorySettings())
