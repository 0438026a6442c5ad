"""How the backend rates jobs and which settings it proposes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.plugin import rate_backends
from rl_backend_megatron.rating import memory_per_rank, memory_settings_of, rate
from rl_core.contracts.model import Role
from rl_core.contracts.rating import BackendJob, JobRole, ModelShape
from rl_huggingface.model_shape import shape_of_config

GIB = 2**30
POLICY, REFERENCE = Role("policy", trainable=True), Role("reference", trainable=False)


def shape(*, kind: str = "qwen2", hidden: int = 896, layers: int = 24, ffn: int = 4864, heads: int = 14) -> ModelShape:
    return shape_of_config(
        {
            "model_type": kind,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 2 if hidden < 4096 else 8,
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
    (found,) = rate_backends(job(given={"precision": "bf16", "max_tokens_per_microbatch": 4096}))
    assert (found.name, found.score, found.config) == ("megatron", 60, {})
    assert found.reasons == ("splits tensors, layers and the optimizer over 8 GPUs",)
    assert found.memory is not None
    assert found.memory.peak < 72 * GIB


def test_layers_are_computed_twice_before_the_model_is_split() -> None:
    found = rate(job(given={"precision": "bf16"}, gpu_memory_bytes=24 * GIB))
    assert (found.score, found.config) == (50, {"activation_checkpointing": True})
    assert found.reasons[1] == "fits with all activations computed twice"


def test_the_model_is_split_where_a_rank_cannot_hold_it() -> None:
    given = {"precision": "bf16"}
    found = rate(job(SEVEN_BILLION, given=given))
    assert (found.score, found.config) == (
        45,
        {"parallel": {"tp": 2, "pp": 1, "sequence": True}, "activation_checkpointing": True},
    )
    assert found.reasons[1] == "fits with tp 2 × pp 1 and all activations computed twice"
    config = MegatronConfig.model_validate({"name": "megatron", **given, **found.config})
    memory = memory_per_rank(config, job(SEVEN_BILLION))
    assert memory is not None
    assert memory.peak == found.memory.peak <= 0.9 * 80 * GIB


def test_what_is_given_is_not_proposed_again() -> None:
    given = {"precision": "bf16", "activation_checkpointing": False, "parallel": {"tp": 2}}
    found = rate(job(SEVEN_BILLION, given=given, gpu_memory_bytes=16 * GIB))
    assert (found.score, found.config) == (10, {})
    assert found.memory is not None
    assert found.reasons[1] == f"needs {found.memory.peak / GIB:.1f} GiB of a GPU's 16.0 GiB"


def test_very_large_models_are_what_pipelines_are_for() -> None:
    found = rate(job(HUNDRED_BILLION, gpus=8, nodes=64, given={"precision": "bf16", "max_tokens_per_microbatch": 4096}))
    count = HUNDRED_BILLION.parameters().total
    assert found.score == 85
    assert found.reasons[-1] == f"pipelines pay at {count / 1e9:.0f} billion parameters"
    split = found.config["parallel"]
    assert (HUNDRED_BILLION.kv_heads % split["tp"], HUNDRED_BILLION.layers % split["pp"]) == (0, 0)


def test_an_architecture_that_cannot_be_built_scores_zero() -> None:
    found = rate(job(shape(kind="gemma2")))
    assert (found.score, found.reasons) == (0, ("cannot build 'gemma2' models",))
    other = (JobRole(POLICY, HALF_A_BILLION), JobRole(REFERENCE, shape(kind="mistral")))
    assert rate(job(roles=other)).reasons == ("cannot build 'mistral' models",)


def test_memory_of_experts_is_not_estimated() -> None:
    size = replace(shape(kind="qwen3_moe"), experts=8, experts_per_token=2)
    found = rate(job(size))
    assert (found.score, found.memory) == (60, None)
    assert found.reasons[1] == "memory unknown: it depends on how many tokens choose an expert"
    assert memory_per_rank(MegatronConfig(name="megatron"), job(size)) is None


@pytest.mark.parametrize(
    ("gpus", "nodes", "score", "place"),
    [
        (0, 1, 40, "trains on CPU, for tests"),
        (1, 1, 60, "trains on one GPU"),
        (4, 2, 60, "splits tensors, layers and the optimizer over 8 GPUs"),
    ],
)
def test_the_first_reason_says_where_it_trains(gpus: int, nodes: int, score: int, place: str) -> None:
    found = rate(job(gpus=gpus, nodes=nodes, gpu_memory_bytes=None))
    assert (found.score, found.reasons) == (score, (place,))


def test_an_unknown_model_is_rated_without_a_number() -> None:
    found = rate(job(None))
    assert (found.score, found.memory, found.reasons[1]) == (60, None, "memory unknown: org/x is not here")
    assert memory_per_rank(MegatronConfig(name="megatron"), job(None)) is None


def test_fields_that_do_not_validate_leave_the_message_to_the_check() -> None:
    found = rate(job(given={"precision": "fp8"}))
    assert (found.score, found.memory, found.config) == (60, None, {})
    assert found.reasons[1] == "memory unknown: the section 'backend' is not valid"


def test_the_layout_is_read_from_config_and_job() -> None:
    config = MegatronConfig(
        name="megatron",
        parallel={"tp": 2, "pp": 2, "sequence": True},
        precision="bf16",
        max_tokens_per_microbatch=8192,
        activation_checkpointing=True,
        distributed_optimizer=False,
        logprob_chunk_tokens=512,
    )
    found = memory_settings_of(config, job(nodes=2))
    assert (found.tp, found.pp, found.dp, found.sequence) == (2, 2, 4, True)
    assert (found.compute_bytes, found.recompute, found.distributed, found.chunk_tokens) == (2, True, False, 512)
    assert (found.tokens, found.microbatches, found.watch_entropy, found.cuda) == (8192, 2, True, True)
    step = memory_settings_of(config, job(nodes=2, tokens_per_step=4 * 20_000))
    assert (step.tokens, step.microbatches) == (8192, 3)
    assert memory_settings_of(MegatronConfig(name="megatron", parallel={"dp": 3}), job(gpus=0)).dp == 3


def test_advice_is_the_cheapest_setting_that_helps() -> None:
    def advice(given: BackendJob, **fields: Any) -> str:
        memory = memory_per_rank(MegatronConfig(name="megatron", **fields), given)
        assert memory is not None
        return memory.advice

    few = job(SEVEN_BILLION, max_length=256)
    assert advice(few, distributed_optimizer=False, max_tokens_per_microbatch=256) == (
        "set backend.distributed_optimizer: true"
    )
    assert advice(job()) == "set backend.activation_checkpointing: true"
    recomputed = {"activation_checkpointing": True, "max_tokens_per_microbatch": 65536}
    assert advice(job(), parallel={"tp": 2}, **recomputed) == "set backend.parallel.sequence: true"
    assert advice(job(), parallel={"tp": 2, "sequence": True}, **recomputed) == ""


def test_rating_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, rl_backend_megatron.rating, rl_backend_megatron.memory, rl_core.preflight.check; "
        "print({'torch', 'transformers', 'megatron'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
