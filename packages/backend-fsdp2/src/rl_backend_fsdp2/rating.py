"""FSDP2's rating of a job: score, settings and memory of a rank. Imports neither torch nor transformers.

Proposals change speed and memory, never results: activation checkpointing and CPU offload where the job would not fit
otherwise. Precision and the division of work stay as they are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rl_core.contracts.rating import BackendJob, BackendRating, MemoryEstimate
from rl_torch.estimates import CPU_ROW_TOKENS, FP32, Settings, microbatch_tokens
from rl_torch.rating import place_of, rate_by_memory, with_advice

from rl_backend_fsdp2.config import Fsdp2Config
from rl_backend_fsdp2.memory import MemorySettings, estimate_memory

NAME = "fsdp2"

FITS, RECOMPUTES, OFFLOADS = 80, 70, 40
"""Scores: as it is; with layers computed twice; with the optimizer in host memory."""

PIPELINE_PARAMETERS = 70 * 10**9
"""Beyond this many parameters pipeline parallelism, which FSDP2 has not, is worth its bubbles."""


def rate(job: BackendJob) -> BackendRating:
    """The rating, with the cheapest settings that make the job fit."""

    def estimate(fields: Mapping[str, Any]) -> MemoryEstimate:
        memory = memory_per_rank(Fsdp2Config.model_validate({"name": NAME, **fields}), job)
        assert memory is not None  # the shapes are known here
        return memory

    place = place_of(job, on_gpus="shards parameters, gradients and optimizer")
    found = rate_by_memory(job, name=NAME, place=place, score=FITS, options=_settings(job), estimate=estimate)
    count = job.shape.parameters().total if job.shape is not None else 0
    if found.memory is None or count <= PIPELINE_PARAMETERS:
        return found
    reason = f"{count / 1e9:.0f} billion parameters train faster with pipeline parallelism"
    return replace(found, score=max(1, found.score - 30), reasons=(*found.reasons, reason))


def memory_per_rank(config: Fsdp2Config, job: BackendJob) -> MemoryEstimate | None:
    """The estimate for a config, with advice on what would lower it; None where a model's size is unknown."""
    if job.unknown:
        return None
    changes: dict[str, dict[str, Any]] = {
        f"activation_checkpointing: {how}": {"activation_checkpointing": how} for how in ("selective", "full")
    }
    if job.gpus:
        changes["cpu_offload: true"] = {"cpu_offload": True}

    def estimate(config: Fsdp2Config) -> MemoryEstimate:
        return estimate_memory(job.roles, memory_settings_of(config, job), adapter=job.adapter)

    return with_advice(config, changes, estimate)


def memory_settings_of(config: Fsdp2Config, job: BackendJob) -> MemorySettings:
    """The memory settings of a config and a job."""
    sizes = config.parallel.sizes(job.total_gpus)
    tokens, count = microbatch_tokens(
        job, limit=config.max_tokens_per_microbatch, data_ranks=sizes["replicate"] * sizes["dp"]
    )
    return MemorySettings(
        shards=sizes["dp"] * sizes["cp"],
        tp=sizes["tp"],
        sequence=config.parallel.sequence,
        cp=sizes["cp"],
        compute_bytes=FP32 if config.precision == "fp32" else 2,
        recompute=config.activation_checkpointing,
        cpu_offload=config.cpu_offload and job.gpus > 0,
        tokens=tokens,
        row_tokens=_row_tokens(config, job),
        chunk_tokens=config.logprob_chunk_tokens,
        several=count > 1,
        # Losses on rollouts report the entropy; see rl_torch.logprobs for what that costs.
        watch_entropy=job.input == "rollouts",
    )


def _row_tokens(config: Fsdp2Config, job: BackendJob) -> int:
    """Width of rows under a dense mask: packed rows without varlen attention, and rows that are spread over ranks."""
    if config.parallel.cp > 1:
        return job.max_length
    if config.uses_varlen(cuda=job.gpus > 0):
        return 0
    if job.gpus and config.packing != "padded":
        return max(config.max_tokens_per_microbatch, job.max_length)
    if config.packing == "packed":
        return max(CPU_ROW_TOKENS, job.max_length)
    return 0


def _settings(job: BackendJob) -> Iterator[Settings]:
    yield Settings(FITS)
    full: dict[str, Any] = {}
    if "activation_checkpointing" not in job.given:
        yield Settings(RECOMPUTES, "cheap activations computed twice", {"activation_checkpointing": "selective"})
        full = {"activation_checkpointing": "full"}
        yield Settings(RECOMPUTES - 5, "all activations computed twice", full)
    if job.gpus and "cpu_offload" not in job.given:
        yield Settings(OFFLOADS, "parameters and optimizer in host memory", {**full, "cpu_offload": True})
