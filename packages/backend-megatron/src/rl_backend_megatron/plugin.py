"""Registers the ``megatron`` backend."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


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
        )
    ]
