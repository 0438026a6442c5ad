"""Fields that the sections of all backends on the engine have. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field
from rl_core.config.problems import Problem
from rl_core.config.sections import BackendConfig

from rl_torch.kernels.config import KERNELS, kernel_problems
from rl_torch.kernels.contract import KernelChoice
from rl_torch.quant_checks import stage_problems


class EngineConfig(BackendConfig):
    """Training on :class:`rl_torch.engine.engine.Engine`."""

    packing: Literal["auto", "packed", "padded"] = Field(
        "auto",
        description="How sequences are laid out: several per row, or one per row. auto takes what is fastest, or what "
        "a kernel needs.",
    )
    kernels: KernelChoice = Field("auto", description=KERNELS)
    async_save: bool = Field(
        False, description="Write checkpoints in the background; training continues after a copy to host memory."
    )
    logprob_chunk_tokens: int | None = Field(
        None, ge=1, description="Tokens whose logits exist at once; default: as many as fit 64 MB in float32."
    )

    def problems(self, stage: Any) -> Iterator[Problem]:
        """Findings that need the rest of the stage's config."""
        yield from stage_problems(stage)
        yield from kernel_problems(self.kernels)
