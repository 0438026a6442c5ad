"""Registers the generator ``vllm``; imports nothing heavy."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_generators() -> list[Component]:
    """The one generator of this package."""
    return [
        Component(
            kind="generator",
            name="vllm",
            factory="rl_generation_vllm.generator:VllmGenerator",
            config="rl_generation_vllm.config:VllmConfig",
            summary="vLLM engines with weights updated in place, on GPUs or the CPU",
            imports=("torch", "transformers", "vllm"),
        )
    ]
