"""The config section of the generator ``hf``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from rl_core.config.problems import Problem
from rl_core.config.sections import GeneratorConfig
from rl_torch.kernels.config import KERNELS, kernel_problems
from rl_torch.kernels.contract import KernelChoice, Use
from rl_torch.kernels.installed import expected


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
    kernels: KernelChoice = Field("auto", description=KERNELS)
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights and the cache.")

    def plan_lines(self, stage: Any) -> Iterator[tuple[str, str]]:
        """For ``rl check``: which kernels will be used, as far as that is known without the model."""
        use = Use("decoding", "cuda" if stage.run.gpus else "cpu")
        yield "kernels for generation", expected(self.kernels, use)

    def problems(self, stage: Any) -> Iterator[Problem]:
        """Findings that need the rest of the stage's config."""
        yield from kernel_problems(self.kernels, section="generator")
