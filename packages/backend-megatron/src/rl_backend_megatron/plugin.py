"""Registers the ``megatron`` backend, and says how well it would run a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_core.component import Component
from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_core.contracts.rating import BackendJob, BackendRating


@hookimpl
def register_backends() -> list[Component]:
    """The Megatron Core backend."""
    return [
        Component(
            kind="backend",
            name="megatron",
            factory="rl_backend_megatron.backend:MegatronBackend",
            config="rl_backend_megatron.config:MegatronConfig",
            summary="Megatron Core: tensor, pipeline and data parallel, on GPUs or CPU",
            imports=("torch", "transformers", "megatron.core"),
            memory_estimate="rl_backend_megatron.rating:memory_per_rank",
        )
    ]


@hookimpl
def rate_backends(job: BackendJob) -> list[BackendRating]:
    """See :func:`rl_backend_megatron.rating.rate`."""
    from rl_backend_megatron.rating import rate

    return [rate(job)]
