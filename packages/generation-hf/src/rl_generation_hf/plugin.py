"""Registers the generator ``hf``; imports nothing heavy."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_generators() -> list[Component]:
    """The one generator of this package."""
    return [
        Component(
            kind="generator",
            name="hf",
            factory="rl_generation_hf.generator:HfGenerator",
            config="rl_generation_hf.config:HfGeneratorConfig",
            summary="Continuous batching on Hugging Face models, on CPU or one GPU",
            imports=("torch", "transformers"),
        )
    ]
