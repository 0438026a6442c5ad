"""How the backend rates jobs and which settings it proposes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rl_backend_fsdp2.config import Fsdp2Config
from rl_backend_fsdp2.plugin import rate_backends
from rl_backend_fsdp2.rating import memory_per_rank, memory_settings_of, rate
from rl_core.contracts.model import Role
from rl_core.contracts.rating import BackendJob, JobRole, ModelShape
from rl_huggingface.model_shape import shape_of_config

GIB = 2**30
POLICY, REFERENCE = Role("policy", trainable=True), Role("reference", trainable=False)


def shape(*, hidden: int = 896, layers: int = 24, ffn: int = 4864, heads: int = 14) -> ModelShape:
    return shape_of_config(
        {
            "model_type": "qwen2",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "intermediate_size": ffn,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        }
    )


HALF_A_BILLION = shape()
SEVEN_BILLION = shape(hidden=3584, layers=28, ffn=18944, heads=28)
HUNDRED_BILLION = shape(hidden=10240, layers=80, ffn=32768, heads=80)


def job(size: ModelShape | None = HALF_A_BILLION, **changes: Any) -> BackendJob:
    base = BackendJob(
        algorithm="grpo",
        roles=(JobRole(POLICY, size, "" if size else "org/x is not here"), JobRole(REFERENCE, size)),
        gpus=8,
        nodes=1,
        max_length=4096,
        input="rollouts",
        gpu_memory_bytes=80 * GIB,
    )
    return replace(base, **changes)


def test_a_job_that_fits_is_taken_as_it_is() -> None:
    (found,) = rate_backends(job(given={"precision": "bf16", "max_tokens_per_microbatch": 8192}))
    assert (found.name, found.score, found.config) == ("fsdp2", 80, {})
    assert found.reasons == ("shards parameters, gradients and optimizer over 8 GPUs",)
    assert found.memory is not None
    assert found.memory.peak < 72 * GIB


def test_layers_are_computed_twice_where_it_would_not_fit_otherwise() -> None:
    given = {"precision": "bf16"}
    found = rate(job(SEVEN_BILLION, given=given))
    assert (found.score, found.config) == (65, {"activation_checkpointing": "full"})
    assert found.reasons[1] == "fits with all activations computed twice"
    config = Fsdp2Config.model_validate({"name": "fsdp2", **given, **found.config})
    assert memory_per_rank(config, job(SEVEN_BILLION)) == found.memory
    assert found.memory is not None
    assert found.memory.peak <= 0.9 * 80 * GIB


def test_the_optimizer_goes_to_host_memory_last() -> None:
    found = rate(job(SEVEN_BILLION, gpus=1, given={"precision": "bf16", "max_tokens_per_microbatch": 4096}))
    assert (found.score, found.config) == (40, {"activation_checkpointing": "full", "cpu_offload": True})
    assert found.reasons == ("trains on one GPU", "fits with parameters and optimizer in host memory")
    assert found.memory is not None
    assert (found.memory.optimizer, found.memory.peak < 72 * GIB) == (0, True)


def test_what_is_given_is_not_proposed_again() -> None:
    given = {"precision": "bf16", "activation_checkpointing": "none", "cpu_offload": False}
    found = rate(job(SEVEN_BILLION, gpus=1, given=given))
    assert (found.score, found.config) == (10, {})
    assert found.memory is not None
    assert found.reasons == ("trains on one GPU", f"needs {found.memory.peak / GIB:.1f} GiB of a GPU's 80.0 GiB")


def test_a_job_that_cannot_fit_says_how_much_it_needs() -> None:
    found = rate(job(SEVEN_BILLION, gpus=1, gpu_memory_bytes=4 * GIB))
    assert found.score == 10
    assert found.memory is not None
    assert found.reasons[1] == (
        f"needs {found.memory.peak / GIB:.1f} GiB of a GPU's 4.0 GiB, even with parameters and optimizer in host memory"
    )


def test_very_large_models_are_better_off_with_pipelines() -> None:
    found = rate(job(HUNDRED_BILLION, gpus=8, nodes=64, given={"precision": "bf16"}))
    count = HUNDRED_BILLION.parameters().total
    assert found.reasons[-1] == f"{count / 1e9:.0f} billion parameters train faster with pipeline parallelism"
    assert found.score == 35


@pytest.mark.parametrize(
    ("gpus", "nodes", "place"),
    [
        (0, 1, "trains on CPU"),
        (1, 1, "trains on one GPU"),
        (4, 2, "shards parameters, gradients and optimizer over 8 GPUs"),
    ],
)
def test_the_first_reason_says_where_it_trains(gpus: int, nodes: int, place: str) -> None:
    assert rate(job(gpus=gpus, nodes=nodes, gpu_memory_bytes=None)).reasons == (place,)


def test_an_unknown_model_is_rated_without_a_number() -> None:
    found = rate(job(None))
    assert (found.score, found.memory) == (80, None)
    assert found.reasons[1] == "memory unknown: org/x is not here"
    assert memory_per_rank(Fsdp2Config(name="fsdp2"), job(None)) is None


def test_fields_that_do_not_validate_leave_the_message_to_the_check() -> None:
    found = rate(job(given={"precision": "fp8"}))
    assert (found.score, found.memory, found.config) == (80, None, {})
    assert found.reasons[1] == "memory unknown: the section 'backend' is not valid"


def test_the_layout_is_read_from_config_and_job() -> None:
    config = Fsdp2Config(
        name="fsdp2",
        parallel={"tp": 2, "cp": 2, "replicate": 2, "sequence": True},
        precision="bf16",
        max_tokens_per_microbatch=8192,
        activation_checkpointing="selective",
        cpu_offload=True,
        logprob_chunk_tokens=512,
    )
    found = memory_settings_of(config, job(nodes=2))
    assert (found.shards, found.tp, found.cp, found.sequence) == (2 * 2, 2, 2, True)
    assert (found.compute_bytes, found.recompute, found.cpu_offload, found.chunk_tokens) == (2, "selective", True, 512)
    assert (found.tokens, found.row_tokens, found.several, found.watch_entropy) == (8192, 4096, True, True)


def test_a_micro_batch_is_no_larger_than_the_step() -> None:
    config = Fsdp2Config(name="fsdp2", max_tokens_per_microbatch=8192)
    whole = memory_settings_of(config, job(tokens_per_step=8 * 5000))
    assert (whole.tokens, whole.several) == (5000, False)
    many = memory_settings_of(config, job(tokens_per_step=8 * 9000))
    assert (many.tokens, many.several) == (8192, True)
    long = memory_settings_of(config, job(max_length=10_000))
    assert (long.tokens, long.several) == (10_000, True)


def test_on_cpu_nothing_is_offloaded_and_packed_rows_have_a_mask() -> None:
    config = Fsdp2Config(name="fsdp2", cpu_offload=True, packing="packed")
    found = memory_settings_of(config, job(gpus=0, max_length=64))
    assert (found.cpu_offload, found.row_tokens) == (False, 128)
    on_gpu = Fsdp2Config(name="fsdp2", packing="packed", precision="bf16")
    assert memory_settings_of(on_gpu, job(max_length=64)).row_tokens == 0  # flash attention needs no mask
    assert memory_settings_of(config, job(max_length=64)).row_tokens == config.max_tokens_per_microbatch


def test_advice_is_the_cheapest_setting_that_helps() -> None:
    def advice(**fields: Any) -> str:
        memory = memory_per_rank(Fsdp2Config(name="fsdp2", **fields), job())
        assert memory is not None
        return memory.advice

    assert advice() == "set backend.activation_checkpointing: selective"
    assert advice(activation_checkpointing="selective") == "set backend.activation_checkpointing: full"
    small = {"activation_checkpointing": "full", "max_tokens_per_microbatch": 4096, "logprob_chunk_tokens": 64}
    assert advice(**small) == "set backend.cpu_offload: true"
    assert advice(**small, cpu_offload=True) == ""


def test_rating_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, rl_backend_fsdp2.rating, rl_backend_fsdp2.memory, rl_core.preflight.check; "
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
