"""What a rank will need: the estimate that a backend gives for a config, and the memory that there is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rl_core.contracts.rating import BackendJob, MemoryEstimate

if TYPE_CHECKING:
    from rl_core.config.select import Selection
    from rl_core.discovery.registry import Registry

GROUPS = ("parameters", "gradients", "optimizer", "activations", "logits")
"""Attributes of :class:`MemoryEstimate` in the order they are shown."""


def estimator_of(selection: Selection, registry: Registry) -> Callable[[BackendJob], MemoryEstimate | None] | None:
    """What estimates the memory of a valid backend section; None for a backend that makes no estimates."""
    if selection.registered is None or selection.config is None:
        return None
    reference = selection.registered.component.memory_estimate
    if reference:
        return lambda job: registry.resolve(reference)(selection.config, job)
    method: Any = getattr(selection.config, "memory_per_rank", None)
    if not callable(method):
        return None
    warnings.warn(
        f"{selection.what} (package {selection.registered.package}): memory_per_rank of a config is deprecated; make "
        "it a function (config, job) and name that in Component(memory_estimate=…)",
        DeprecationWarning,
        stacklevel=2,
    )
    return method


def estimator_name(selection: Selection) -> str:
    """What messages call the function or method of :func:`estimator_of`."""
    assert selection.registered is not None
    return f"{selection.registered.component.memory_estimate.partition(':')[2] or 'memory_per_rank'}()"


def memory_limit(job: BackendJob) -> tuple[int, str] | None:
    """Bytes that a rank can have on this machine and where; None where that is unknown."""
    if job.gpus:
        return None if job.gpu_memory_bytes is None else (job.gpu_memory_bytes, "on the GPU")
    return None if job.host_memory_bytes is None else (job.host_memory_bytes, "on this machine")


def size(count: int) -> str:
    """Bytes for people: ``"640 MiB"``, ``"1.9 GiB"``."""
    if count < 2**30:
        return f"{count / 2**20:,.0f} MiB"
    return f"{count / 2**30:,.1f} GiB"
