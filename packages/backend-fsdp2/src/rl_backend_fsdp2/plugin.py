"""Registers the ``fsdp2`` backend, and says how well it would run a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_core.component import Component
from rl_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from rl_core.contracts.rating import BackendJob, BackendRating


@hookimpl
def register_backends() -> list[Component]:
    """The FSDP2 backend."""
    return [
        Component(
            kind="backend",
            name="fsdp2",
            factory="rl_backend_fsdp2.backend:Fsdp2Backend",
            config="rl_backend_fsdp2.config:Fsdp2Config",
            summary="PyTorch FSDP2: fully sharded data parallel, on GPUs or CPU",
            imports=("torch", "transformers"),
            memory_estimate="rl_backend_fsdp2.rating:memory_per_rank",
        )
    ]


@hookimpl
def rate_backends(job: BackendJob) -> list[BackendRating]:
    """See :func:`rl_backend_fsdp2.rating.rate`."""
    from rl_backend_fsdp2.rating import rate

    return [rate(job)]
