"""Settings of backend and generator, as their config models have them, for machines without pydantic.

A test compares the fields, the defaults and the methods with :class:`rl_backend_fsdp2.config.Fsdp2Config` and
:class:`rl_generation_hf.config.HfGeneratorConfig`. Nothing is validated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ParallelSettings:
    """See :class:`rl_backend_fsdp2.config.ParallelConfig`."""

    dp: int | None = None
    replicate: int = 1
    tp: int = 1
    cp: int = 1
    sequence: bool = False


@dataclass(frozen=True)
class Fsdp2Settings:
    """See :class:`rl_backend_fsdp2.config.Fsdp2Config`."""

    max_tokens_per_microbatch: int = 16384
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    precision: str = "fp32"
    packing: str = "auto"
    attention: str = "auto"
    kernels: str = "auto"
    activation_checkpointing: str = "none"
    cpu_offload: bool = False
    compile: bool = False
    async_save: bool = False
    logprob_chunk_tokens: int | None = None

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


@dataclass(frozen=True)
class HfSettings:
    """What the generator reads of :class:`rl_generation_hf.config.HfGeneratorConfig`."""

    max_batch_tokens: int = 65536
    kernels: str = "auto"
    dtype: str = "float32"
    partial_rollouts: str = "continue"
