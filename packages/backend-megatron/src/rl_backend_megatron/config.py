"""The ``backend`` section for ``name: megatron``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from rl_core.config.problems import Problem
from rl_torch.engine.config import EngineConfig

from rl_backend_megatron.parallelism import ParallelConfig, Shape, division_problems, ranks_problems


class MegatronConfig(EngineConfig):
    """Training on Megatron Core."""

    adapters: ClassVar[frozenset[str]] = frozenset({"lora"})
    weight_transports: ClassVar[Mapping[str, str]] = {
        "collective": "rl_torch.transports.collective:Sender",
    }

    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="How the ranks divide the work.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 keeps the model in bfloat16; gradient sums and the optimizer's copy stay float32."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more compute."
    )
    distributed_optimizer: bool = Field(
        True, description="Split the optimizer's state over data-parallel ranks (ZeRO-1): less memory, same result."
    )

    def world_size(self, gpus: int) -> int:
        """One rank per GPU; on CPU as many as ``parallel`` multiplies to."""
        return gpus or self.parallel.copies(0) * self.parallel.model_ranks

    def problems(self, stage: Any) -> Iterator[Problem]:
        """Layouts that cannot work, with the arithmetic."""
        yield from ranks_problems(self.parallel, gpus=stage.run.gpus, nodes=stage.run.nodes)
        yield from super().problems(stage)
        shape = Shape.of(stage.model)
        if shape is not None:
            yield from division_problems(self.parallel, shape)
