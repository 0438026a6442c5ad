"""The config section of the generator ``hf``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from rl_core.config.sections import GeneratorConfig


class HfGeneratorConfig(GeneratorConfig):
    """Sampling defaults, and how much memory the engine may use."""

    memory_settings: ClassVar[tuple[str, ...]] = ("max_batch_tokens",)
    weight_transports: ClassVar[Mapping[str, str]] = {
        "ipc": "rl_torch.transports.ipc:Receiver",
        "collective": "rl_torch.transports.collective:Receiver",
    }

    max_batch_tokens: int = Field(
        65536,
        ge=1,
        description="Key/value-cache budget in tokens: completions that run at once × (longest prompt + "
        "max_new_tokens). At least one always runs; results do not depend on it.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights and the cache.")
