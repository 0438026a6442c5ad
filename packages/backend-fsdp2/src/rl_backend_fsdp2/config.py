"""The ``backend`` section for ``name: fsdp2``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from rl_core.config.problems import Problem
from rl_core.config.sections import Section
from rl_torch.engine.config import EngineConfig
from rl_torch.kernels.contract import Use
from rl_torch.kernels.installed import expected

Precision = Literal["fp32", "bf16", "fp16"]
Recompute = Literal["none", "selective", "full"]


class ParallelConfig(Section):
    """Parallelism; the number of ranks is replicate × dp × cp × tp."""

    dp: int | None = Field(
        None,
        ge=1,
        description="Data-parallel ranks that share parameters, gradients and data; default: what the others leave.",
    )
    replicate: int = Field(
        1, ge=1, description="Copies of the sharded model (HSDP); each works on data of its own. 1: plain FSDP."
    )
    tp: int = Field(1, ge=1, description="Tensor-parallel ranks that split every matrix between them.")
    cp: int = Field(1, ge=1, description="Context-parallel ranks that split every sequence between them.")
    sequence: bool = Field(
        False, description="With tp: also split activations between the layers' matrices over tokens (less memory)."
    )

    def sizes(self, gpus: int) -> dict[str, int]:
        """``replicate, dp, cp, tp`` for a job with ``gpus`` GPUs in all (0: CPU)."""
        others = self.replicate * self.cp * self.tp
        return {
            "replicate": self.replicate,
            "dp": self.dp or max(1, gpus // others),
            "cp": self.cp,
            "tp": self.tp,
        }


class Fsdp2Config(EngineConfig):
    """Training on PyTorch FSDP2."""

    adapters: ClassVar[frozenset[str]] = frozenset({"lora", "dora", "adalora"})
    weight_transports: ClassVar[Mapping[str, str]] = {
        "ipc": "rl_torch.transports.ipc:Sender",
        "collective": "rl_torch.transports.collective:Sender",
    }

    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="How the ranks divide the work.")
    precision: Precision = Field(
        "fp32",
        description="bf16 and fp16 compute in 16 bits; trained weights, gradient sums and optimizer stay float32. "
        "fp16 scales the loss.",
    )
    attention: Literal["auto", "dense", "varlen"] = Field(
        "auto",
        description="Attention in packed rows: under a dense mask, or sequence by sequence (varlen: flash attention on "
        "GPUs in 16 bits). auto takes varlen there and dense elsewhere.",
    )
    activation_checkpointing: Recompute = Field(
        "none",
        description="What the backward pass recomputes: nothing; all but matrix products and attention (selective); "
        "everything inside a layer (full, about a third more compute).",
    )
    cpu_offload: bool = Field(
        False, description="Keep parameters, gradients and optimizer in host memory, and update them there."
    )
    compile: bool = Field(
        False, description="torch.compile every layer; the first step takes a minute, later runs use a cache on disk."
    )

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _yes_or_no(cls, given: Any) -> Any:
        return ("none", "full")[given] if isinstance(given, bool) else given

    def uses_varlen(self, *, cuda: bool) -> bool:
        """Whether packed rows are attended to without a dense mask."""
        if self.parallel.cp > 1 or self.packing == "padded":
            return False
        return self.attention == "varlen" or (self.attention == "auto" and cuda and self.precision != "fp32")

    @property
    def layout_fixed_by(self) -> str:
        """The setting that says how rows are laid out; empty where a kernel may choose."""
        settings = {
            f"backend.packing: {self.packing}": self.packing != "auto",
            f"backend.attention: {self.attention}": self.attention != "auto",
            "backend.parallel.cp": self.parallel.cp > 1,
            "backend.compile": self.compile,
        }
        return next((name for name, given in settings.items() if given), "")

    def world_size(self, gpus: int) -> int:
        """One rank per GPU; on CPU the product of ``parallel``."""
        sizes = self.parallel.sizes(gpus)
        return gpus or sizes["replicate"] * sizes["dp"] * sizes["cp"] * sizes["tp"]

    def plan_lines(self, stage: Any) -> Iterator[tuple[str, str]]:
        """For ``rl check``: which kernels will be used, as far as that is known without the model."""
        device = "cuda" if stage.run.gpus else "cpu"
        use = Use("training", device, layout_fixed_by=self.layout_fixed_by)
        yield "kernels", expected(self.kernels, use)

    def problems(self, stage: Any) -> Iterator[Problem]:
        """Findings that need the rest of the stage's config."""
        yield from self._layout_problems(stage)
        yield from super().problems(stage)
        if self.parallel.sequence and self.parallel.tp == 1:
            yield Problem(
                path="backend.parallel.sequence",
                message="sequence has no effect without tensor parallelism",
                fix="set backend.parallel.tp, or remove sequence",
            )
        if self.attention != "auto" and (self.parallel.cp > 1 or self.packing == "padded"):
            why = "with context parallelism, which has its own" if self.parallel.cp > 1 else f"on {self.packing} rows"
            yield Problem(
                path="backend.attention", message=f"attention has no effect {why}", fix="remove backend.attention"
            )
        init = stage.model.init
        if init is not None and self.parallel.tp > 1:
            yield from self._head_problems(init.heads, init.kv_heads or init.heads)
        adapter = stage.model.adapter
        if adapter is not None and adapter.rank % self.parallel.tp:
            yield Problem(
                path="backend.parallel.tp",
                message=f"{self.parallel.tp} tensor-parallel ranks cannot share "
                f"model.adapter.rank {adapter.rank} equally",
                fix=f"choose a rank that is a multiple of {self.parallel.tp}",
            )
        if adapter is not None and adapter.name != "lora" and self.parallel.tp > 1:
            yield Problem(
                path="backend.parallel.tp",
                message=f"{adapter.name} adapters do not work with tensor parallelism ({self.parallel.tp} ranks)",
                fix="set model.adapter.name: lora, or backend.parallel.tp: 1",
            )

    def _layout_problems(self, stage: Any) -> Iterator[Problem]:
        gpus = stage.run.gpus * stage.run.nodes
        sizes = self.parallel.sizes(gpus)
        world = sizes["replicate"] * sizes["dp"] * sizes["cp"] * sizes["tp"]
        if gpus and world != gpus:
            product = " × ".join(f"{name} {size}" for name, size in sizes.items())
            yield Problem(
                path="backend.parallel",
                message=f"{product} = {world} ranks do not match {gpus} GPUs "
                f"(run.gpus {stage.run.gpus} × run.nodes {stage.run.nodes})",
                fix="leave backend.parallel.dp out to use every GPU"
                if gpus % (sizes["replicate"] * sizes["cp"] * sizes["tp"]) == 0
                else f"choose replicate, cp and tp whose product divides {gpus}",
            )

    def _head_problems(self, heads: int, kv_heads: int) -> Iterator[Problem]:
        tp = self.parallel.tp
        for name, count in (("heads", heads), ("kv_heads", kv_heads)):
            if count % tp:
                yield Problem(
                    path="backend.parallel.tp",
                    message=f"{tp} tensor-parallel ranks cannot share model.init.{name} {count} equally",
                    fix=f"choose a tp that divides {count}",
                )
