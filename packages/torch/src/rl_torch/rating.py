"""Rating a job by the memory that a rank needs, for backends. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from rl_core.contracts.rating import BackendJob, BackendRating, MemoryEstimate

from rl_torch.estimates import Settings, first_that_fits


def rate_by_memory(
    job: BackendJob,
    *,
    name: str,
    place: str,
    score: int,
    options: Iterable[Settings],
    estimate: Callable[[Mapping[str, Any]], MemoryEstimate],
) -> BackendRating:
    """The rating of a backend with the first of ``options`` that fits; without a number where memory is unknown.

    Args:
        name: of the backend.
        place: where it trains, the first reason.
        score: where memory is unknown.
        estimate: for the fields of a section, which it validates.
    """
    if job.shape is None or job.unknown:
        return BackendRating(name, score, (place, f"memory unknown: {job.unknown}"))
    try:
        fit = first_that_fits(job, list(options), estimate)
    except ValidationError:
        # The check of the section itself says which field is wrong.
        return BackendRating(name, score, (place, "memory unknown: the section 'backend' is not valid"))
    return BackendRating(name, fit.score, (place, *fit.reasons), fit.memory, fit.settings.fields)


def place_of(job: BackendJob, *, on_cpu: str = "trains on CPU", on_gpus: str) -> str:
    """Where a job trains, in words; ``on_gpus`` says what is done over several of them."""
    if not job.gpus:
        return on_cpu
    return "trains on one GPU" if job.total_gpus == 1 else f"{on_gpus} over {job.total_gpus} GPUs"


def with_advice(
    config: Any, changes: Mapping[str, Mapping[str, Any]], estimate: Callable[[Any], MemoryEstimate]
) -> MemoryEstimate:
    """The estimate for ``config``, with the first of ``changes`` that takes a tenth or more off it as advice.

    Args:
        changes: what to write → fields of ``config``.
    """
    memory = estimate(config)
    for text, fields in changes.items():
        if estimate(config.model_copy(update=dict(fields))).peak <= 0.9 * memory.peak:
            return replace(memory, advice=f"set backend.{text}")
    return memory
