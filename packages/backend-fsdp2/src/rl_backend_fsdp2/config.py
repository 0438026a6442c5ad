"""The ``backend`` section for ``name: fsdp2``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field
from rl_core.config.problems import Problem
from rl_core.config.sections import BackendConfig, Section


class ParallelConfig(Section):
    """How the ranks divide the work."""

    dp: int | None = Field(
        None,
        ge=1,
        description="Data-parallel ranks that share parameters, gradients and data; default: all GPUs, or 1.",
    )


class Fsdp2Config(BackendConfig):
    """Training on PyTorch FSDP2."""

    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="How the ranks divide the work.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 computes in bfloat16; weights, gradient sums and optimizer stay float32."
    )
    packing: Literal["auto", "packed", "padded"] = Field(
        "auto",
        description="How sequences are laid out: several per row, one per row, or what is faster on the device.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more compute."
    )
    logprob_chunk_tokens: int | None = Field(
        None, ge=1, description="Tokens whose logits exist at once; default: as many as fit 64 MB in float32."
    )

    def world_size(self, gpus: int) -> int:
        """One rank per GPU; on CPU as many as ``parallel.dp``."""
        return gpus or self.parallel.dp or 1

    def problems(self, stage: Any) -> Iterator[Problem]:
        """Findings that need the rest of the stage's config."""
        gpus = stage.run.gpus * stage.run.nodes
        if gpus and self.parallel.dp not in (None, gpus):
            yield Problem(
                path="backend.parallel.dp",
                message=f"{self.parallel.dp} data-parallel ranks do not match {gpus} GPUs "
                f"(run.gpus {stage.run.gpus} × run.nodes {stage.run.nodes})",
                fix="leave backend.parallel.dp out to use every GPU",
            )
