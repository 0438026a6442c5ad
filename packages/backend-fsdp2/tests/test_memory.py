"""Estimates against the measured peak of real training, and the arithmetic behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_backend_fsdp2.config import Fsdp2Config
from rl_backend_fsdp2.memory import MemorySettings, estimate_memory, kept_per_token
from rl_backend_fsdp2.rating import memory_per_rank
from rl_core.contracts.model import AdapterSpec, ModelSpec, Role
from rl_core.contracts.rating import JobRole, MemoryEstimate
from rl_huggingface.model_shape import shape_of_config
from rl_torch.estimates import adapter_parameters
from rl_torch.memory_probe import POLICY, Case, Probe, shape_of_init
from rl_torch.models import build_model

REFERENCE = Role("reference", trainable=False)
VALUE = Role("value", trainable=True, head="scalar")

SMALL = {"architecture": "qwen2", "hidden_size": 192, "layers": 6, "heads": 6, "kv_heads": 2, "ffn": 512}
MEDIUM = {"architecture": "qwen2", "hidden_size": 384, "layers": 6, "heads": 6, "kv_heads": 2, "ffn": 1024}
LARGE = {"architecture": "llama", "hidden_size": 512, "layers": 6, "heads": 8, "kv_heads": 8, "ffn": 1408}
LARGE |= {"tie_embeddings": False}
LORA = AdapterSpec("lora", rank=8, alpha=16.0)


BACKEND = ("fsdp2", "rl_backend_fsdp2.backend:Fsdp2Backend", "rl_backend_fsdp2.config:Fsdp2Config")


def estimate(case: Case) -> MemoryEstimate:
    found = memory_per_rank(Fsdp2Config(name="fsdp2", **case.settings), case.job())
    assert found is not None
    return found


ALONE = {
    "3M, long micro-batches": Case(SMALL, 1024, tokens=1536, sequences=12, length=256),
    "3M, short micro-batches": Case(SMALL, 1024, tokens=256, sequences=8, length=64),
    "3M, entropy, logits in chunks": Case(
        SMALL, 8192, tokens=768, sequences=12, length=128, entropy=True, config={"logprob_chunk_tokens": 192}
    ),
    "12M, reference, everything recomputed": Case(
        MEDIUM,
        8192,
        tokens=512,
        sequences=8,
        length=128,
        roles=(POLICY, REFERENCE),
        config={"activation_checkpointing": "full", "logprob_chunk_tokens": 128},
    ),
    "12M, cheap activations recomputed": Case(
        MEDIUM, 4096, tokens=512, sequences=16, length=64, config={"activation_checkpointing": "selective"}
    ),
    "12M, packed rows": Case(MEDIUM, 4096, tokens=384, sequences=12, length=64, config={"packing": "packed"}),
    "12M, policy and value": Case(MEDIUM, 4096, tokens=256, sequences=8, length=64, roles=(POLICY, VALUE)),
    "12M, bf16": Case(MEDIUM, 4096, tokens=256, sequences=8, length=64, config={"precision": "bf16"}),
    "12M, LoRA, reference without weights": Case(
        MEDIUM,
        4096,
        tokens=512,
        sequences=8,
        length=128,
        roles=(POLICY, replace(REFERENCE, base_of="policy")),
        adapter=LORA,
    ),
    "28M, one micro-batch": Case(LARGE, 8192, tokens=1024, sequences=4, length=128),
}
SHARED = {
    "12M, dp 2": Case(MEDIUM, 4096, tokens=256, sequences=16, length=64, config={"parallel": {"dp": 2}}),
    "28M, dp 2, bf16, everything recomputed": Case(
        LARGE,
        8192,
        tokens=256,
        sequences=16,
        length=64,
        config={"parallel": {"dp": 2}, "precision": "bf16", "activation_checkpointing": "full"},
    ),
    "12M, tp 2": Case(MEDIUM, 4096, tokens=512, sequences=8, length=128, config={"parallel": {"tp": 2}}),
}


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    probes = [Probe(cases, world, backend=BACKEND) for cases, world in ((ALONE, 1), (SHARED, 2))]
    return probes[0].peaks() | probes[1].peaks()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("name", [*ALONE, *SHARED])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(name: str, peaks: dict[str, int]) -> None:
    expected, peak = estimate((ALONE | SHARED)[name]).peak, peaks[name]
    print(f"{name}: measured {peak / 2**20:.0f} MiB, estimated {expected / 2**20:.0f} MiB, {expected / peak:.3f}")
    assert abs(expected - peak) <= 0.2 * peak, f"measured {peak:,} bytes, estimated {expected:,}"


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3", "gpt2", "mixtral", "gemma"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_parameters_are_counted_exactly(architecture: str, tied: bool, head: Any) -> None:
    init = {"architecture": architecture, "hidden_size": 64, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 96}
    init |= {"tie_embeddings": tied}
    if architecture == "gpt2":
        init |= {"kv_heads": 4, "ffn": 4 * 64}  # its class knows no other
    extra = {"num_local_experts": 4} if architecture == "mixtral" else {}
    model = build_model(
        ModelSpec(init={**init, "extra": extra}, vocab_size=100, max_length=32), dtype=torch.float32, head=head
    )
    shape = shape_of_config({**model.config.to_dict(), "tie_word_embeddings": tied})
    assert shape.parameters(head).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_block_keeps_the_tensors_that_are_counted(architecture: str, packed: bool) -> None:
    init = {**SMALL, "architecture": architecture}
    kept = [_saved_bytes({**init, "layers": layers}, packed=packed) for layers in (1, 2)]
    settings = MemorySettings(row_tokens=64 if packed else 0)
    assert (kept[1] - kept[0]) / (4 * 64) == kept_per_token(shape_of_init(init, 128), settings)


def _saved_bytes(init: dict[str, Any], *, packed: bool) -> int:
    """Of all tensors that autograd keeps for 4 rows of 64 tokens, parameters apart."""
    model = build_model(ModelSpec(init=init, vocab_size=128, max_length=64), dtype=torch.float32)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses apart

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    positions = torch.arange(32).repeat(4, 2) if packed else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(4, 64, dtype=torch.int64)
        out = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def roles(*given: Role) -> list[JobRole]:
    return [JobRole(role, shape_of_init(MEDIUM, 1000)) for role in given]


def test_states_of_a_trained_model_take_sixteen_bytes_a_parameter() -> None:
    count = shape_of_init(MEDIUM, 1000).parameters().total
    found = estimate_memory(roles(POLICY), MemorySettings(tokens=16))
    assert (found.parameters, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    with_reference = estimate_memory(roles(POLICY, REFERENCE), MemorySettings(tokens=16))
    assert with_reference.parameters - found.parameters == 4 * count
    assert with_reference.optimizer == found.optimizer


def test_a_reference_that_is_the_policy_without_its_adapter_takes_nothing() -> None:
    adapted = estimate_memory(roles(POLICY), MemorySettings(tokens=16), adapter=LORA)
    both = estimate_memory(roles(POLICY, replace(REFERENCE, base_of="policy")), MemorySettings(tokens=16), adapter=LORA)
    assert both == adapted
    trained = adapter_parameters(shape_of_init(MEDIUM, 1000), LORA)
    assert (adapted.gradients, adapted.optimizer) == (4 * trained, 8 * trained)


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_adapter_parameters_are_those_that_peft_adds(kind: Any) -> None:
    from rl_backend_fsdp2.adapters import attach

    adapter = AdapterSpec(kind, rank=4, alpha=8.0, initial_rank=6, prune_to_step=10)
    model = build_model(ModelSpec(init=SMALL, vocab_size=64, max_length=32), dtype=torch.float32)
    attach(model, adapter)
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shape_of_init(SMALL, 64), adapter) == added


def test_only_the_named_layers_get_an_adapter() -> None:
    adapter = replace(LORA, target_modules=("q_proj", "v_proj"))
    assert adapter_parameters(shape_of_init(MEDIUM, 64), adapter) == 6 * 8 * ((384 + 384) + (384 + 128))


def test_sharding_divides_what_lasts_and_adds_gathered_copies() -> None:
    one, four = (estimate_memory(roles(POLICY), MemorySettings(tokens=16, shards=n)) for n in (1, 4))
    count = shape_of_init(MEDIUM, 1000).parameters()
    assert four.optimizer == one.optimizer // 4
    ends = count.total - count.layer * count.layers
    assert four.parameters == one.parameters // 4 + 4 * (ends + 3 * count.layer)


def test_each_way_to_save_memory_saves_what_it_says() -> None:
    base = MemorySettings(tokens=4096)
    plain = estimate_memory(roles(POLICY), base)
    selective, full = (estimate_memory(roles(POLICY), replace(base, recompute=how)) for how in ("selective", "full"))
    assert plain.activations > selective.activations > full.activations
    assert plain.optimizer == selective.optimizer == full.optimizer
    half = estimate_memory(roles(POLICY), replace(base, tokens=2048))
    assert half.activations * 2 == pytest.approx(plain.activations)
    chunked = estimate_memory(roles(POLICY), replace(base, chunk_tokens=64))
    assert chunked.logits < plain.logits / 4
    offloaded = estimate_memory(roles(POLICY), replace(base, cpu_offload=True))
    assert (offloaded.optimizer, offloaded.gradients - 8 * shape_of_init(MEDIUM, 1000).parameters().layer) == (0, 0)


def test_logits_grow_with_a_chunk_and_not_with_the_micro_batch() -> None:
    def logits(tokens: int) -> int:
        found = estimate_memory(roles(POLICY), MemorySettings(tokens=tokens, chunk_tokens=512)).logits
        return found - tokens * MEDIUM["hidden_size"] * 4  # the gradient by the hidden states

    assert logits(2048) == logits(16384)


def test_a_shape_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the shape of role 'policy' is unknown$"):
        estimate_memory([JobRole(POLICY, None)], MemorySettings())
