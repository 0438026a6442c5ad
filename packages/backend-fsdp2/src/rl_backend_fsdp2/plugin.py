"""Registers the ``fsdp2`` backend."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


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
        )
    ]
