"""The config section of the generator ``vllm``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from rl_core.config.problems import Problem
from rl_core.config.sections import GeneratorConfig

from rl_generation_vllm.shapes import ModelShape, cpu_cache_bytes, shape_finding, shape_of_model

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


class VllmConfig(GeneratorConfig):
    """Sampling defaults, and what an engine may use. Each replica is one engine in a process of its own."""

    memory_settings: ClassVar[tuple[str, ...]] = ("kv_cache_bytes", "gpu_memory_utilization", "max_num_seqs")
    weight_transports: ClassVar[Mapping[str, str]] = {
        "ipc": "rl_torch.transports.ipc:Receiver",
        "collective": "rl_torch.transports.collective:Receiver",
    }

    tensor_parallel: int = Field(
        1, ge=1, description="Processes that split an engine's matrices between them; only 1 on GPUs so far."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights and the cache; auto is float32 on the CPU and bfloat16 on GPUs."
    )
    max_num_seqs: int = Field(
        256, ge=1, description="Completions that run at once; further ones wait. Results do not depend on it."
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="Key/value-cache memory per engine. Default on the CPU: room for max_num_seqs sequences of "
        "model.max_length, at most 4 GiB; on GPUs: what gpu_memory_utilization leaves.",
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the GPU's memory an engine may use for weights and cache; default 0.9, or 0.4 "
        "where training shares the GPU (placement).",
    )
    enforce_eager: bool = Field(
        False,
        description="Run without compilation and CUDA graphs: starts faster, generates slower. Always on the CPU.",
    )

    def resolved_dtype(self, device: str) -> str:
        """The torch name of the type on ``device`` (``cpu`` or ``cuda``)."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if device == "cpu" else "bfloat16"

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """Options without effect or possibility on the run's device, and models an engine cannot serve."""
        on_cpu = stage.run.gpus == 0
        yield from self._option_problems(on_cpu)
        if self.partial_rollouts != "continue":
            yield Problem(
                "partial_rollouts",
                f"{self.partial_rollouts!r} is not possible here: an engine takes new weights when a batch is done",
                fix="remove it, or use generator: {name: hf}",
            )
        shape = shape_of_model(stage.model)
        if shape is None:
            return
        device = "cpu" if on_cpu else "cuda"
        found = shape_finding(shape, device=device, tensor_parallel=self.tensor_parallel)
        if found is not None:
            yield Problem("name", *found)
        yield from self._cache_problems(shape, stage.model.max_length, device=device)

    def _option_problems(self, on_cpu: bool) -> Iterator[Problem]:
        if on_cpu and self.gpu_memory_utilization is not None:
            yield Problem(
                "gpu_memory_utilization",
                "has no effect on the CPU (run.gpus is 0)",
                fix="remove it; generator.kv_cache_bytes limits the memory there",
            )
        if self.gpu_memory_utilization is not None and self.kv_cache_bytes is not None and not on_cpu:
            yield Problem(
                "gpu_memory_utilization",
                "has no effect together with kv_cache_bytes, which fixes the size of the cache",
                fix="remove one of the two",
            )
        if not on_cpu and self.tensor_parallel > 1:
            yield Problem(
                "tensor_parallel",
                f"an engine is given one GPU, and tensor_parallel {self.tensor_parallel} needs {self.tensor_parallel}",
                fix="set tensor_parallel: 1 and use replicas for more GPUs",
            )

    def _cache_problems(self, shape: ModelShape, max_length: int, *, device: str) -> Iterator[Problem]:
        if self.kv_cache_bytes is None:
            return
        needed = cpu_cache_bytes(shape, sequences=1, length=max_length, dtype=self.resolved_dtype(device))
        if self.kv_cache_bytes * self.tensor_parallel < needed:
            yield Problem(
                "kv_cache_bytes",
                f"{self.kv_cache_bytes} bytes do not hold one sequence of model.max_length {max_length} "
                f"({needed} bytes)",
                fix=f"set kv_cache_bytes to at least {-(-needed // self.tensor_parallel)}, or lower model.max_length",
            )
