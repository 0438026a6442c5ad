"""Megatron's rating of a job: score, settings and memory of a rank. Imports neither torch nor Megatron.

Proposals change speed and memory, never results: layers computed twice, or the model split over more GPUs, where the
job would not fit otherwise. Precision stays as it is given, and so does a division of work that is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rl_core.contracts.rating import BackendJob, BackendRating, MemoryEstimate, ModelShape
from rl_torch.estimates import FP32, Settings, microbatch_tokens
from rl_torch.rating import place_of, rate_by_memory, with_advice

from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.memory import MemorySettings, estimate_memory
from rl_backend_megatron.parallelism import ARCHITECTURES

NAME = "megatron"

FITS, RECOMPUTE, SPLIT = 60, -10, -5
"""Score of a job that fits as it is, and what changes take off it. A simpler backend that fits as well is preferred."""

CPU = 40
"""Score on CPU, where this backend is for tests."""

PIPELINE_PARAMETERS = 70 * 10**9
"""Beyond this many parameters the pipelines of this backend are worth their bubbles: 30 more."""


def rate(job: BackendJob) -> BackendRating:
    """The rating, with the cheapest settings that make the job fit."""
    place = place_of(job, on_cpu="trains on CPU, for tests", on_gpus="splits tensors, layers and the optimizer")
    score = FITS if job.gpus else CPU
    if job.shape is not None and not job.unknown:
        for part in job.roles:
            if part.shape is not None and part.shape.architecture not in ARCHITECTURES:
                return BackendRating(NAME, 0, (f"cannot build {part.shape.architecture!r} models",))
        if _has_experts(job):
            reason = "memory unknown: it depends on how many tokens choose an expert"
            return BackendRating(NAME, score, (place, reason))

    def estimate(fields: Mapping[str, Any]) -> MemoryEstimate:
        return _estimate(MegatronConfig.model_validate({"name": NAME, **fields}), job)

    found = rate_by_memory(job, name=NAME, place=place, score=score, options=_settings(job), estimate=estimate)
    count = job.shape.parameters().total if job.shape is not None else 0
    if found.memory is None or not job.gpus or count <= PIPELINE_PARAMETERS:
        return found
    reason = f"pipelines pay at {count / 1e9:.0f} billion parameters"
    return replace(found, score=found.score + 30, reasons=(*found.reasons, reason))


def memory_per_rank(config: MegatronConfig, job: BackendJob) -> MemoryEstimate | None:
    """The estimate for a config, with advice on what would lower it; None where a model's size is unknown."""
    if job.unknown or _has_experts(job):
        return None
    changes: dict[str, dict[str, Any]] = {
        "distributed_optimizer: true": {"distributed_optimizer": True},
        "activation_checkpointing: true": {"activation_checkpointing": True},
    }
    if config.parallel.tp > 1:
        changes["parallel.sequence: true"] = {"parallel": config.parallel.model_copy(update={"sequence": True})}
    return with_advice(config, changes, lambda changed: _estimate(changed, job))


def _estimate(config: MegatronConfig, job: BackendJob) -> MemoryEstimate:
    return estimate_memory(job.roles, memory_settings_of(config, job), adapter=job.adapter)


def _has_experts(job: BackendJob) -> bool:
    """Memory of experts depends on how many tokens choose them, and is not estimated."""
    return any(part.shape is not None and part.shape.experts for part in job.roles)


def memory_settings_of(config: MegatronConfig, job: BackendJob) -> MemorySettings:
    """The memory settings of a config and a job."""
    parallel = config.parallel
    copies = parallel.copies(job.total_gpus)
    tokens, count = microbatch_tokens(job, limit=config.max_tokens_per_microbatch, data_ranks=copies)
    if job.tokens_per_step is None:
        count = parallel.pp  # many: as many as the pipeline holds at once
    return MemorySettings(
        tp=parallel.tp,
        pp=parallel.pp,
        dp=copies,
        sequence=parallel.sequence,
        compute_bytes=2 if config.precision == "bf16" else FP32,
        distributed=config.distributed_optimizer,
        recompute=config.activation_checkpointing,
        tokens=tokens,
        microbatches=count,
        chunk_tokens=config.logprob_chunk_tokens,
        # Losses on rollouts report the entropy; see rl_torch.logprobs for what that costs.
        watch_entropy=job.input == "rollouts",
        cuda=job.gpus > 0,
    )


def _settings(job: BackendJob) -> Iterator[Settings]:
    """Fewest ranks for a copy of the model first; for each, layers computed once before twice."""
    best = FITS if job.gpus else CPU
    assert job.shape is not None  # of a job that is estimated
    for tp, pp in (
        [(1, 1)]
        if "parallel" in job.given
        else sorted(_splits(job, job.shape), key=lambda split: (split[0] * split[1], split[1]))
    ):
        split = {"tp": tp, "pp": pp} if tp * pp > 1 else {}
        fields: dict[str, Any] = {"parallel": split | ({"sequence": True} if tp > 1 else {})} if split else {}
        how = f"tp {tp} × pp {pp}" if split else ""
        score = best + (SPLIT if split else 0)
        yield Settings(score, how, fields)
        if "activation_checkpointing" not in job.given:
            twice = "all activations computed twice"
            fields = fields | {"activation_checkpointing": True}
            yield Settings(score + RECOMPUTE, f"{how} and {twice}" if how else twice, fields)


def _splits(job: BackendJob, shape: ModelShape) -> Iterator[tuple[int, int]]:
    """``(tp, pp)`` that divide the model and the GPUs; tensor-parallel ranks stay inside a machine."""
    yield 1, 1
    total = job.total_gpus
    for tp in (n for n in range(1, job.gpus + 1) if job.gpus % n == 0):
        if shape.heads % tp or shape.kv_heads % tp or shape.ffn % tp:
            continue
        for pp in range(1, shape.layers + 1):
            if tp * pp > 1 and shape.layers % pp == 0 and total % (tp * pp) == 0:
                yield tp, pp
