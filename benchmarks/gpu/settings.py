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
    activation_checkpointing: str = "none"
    cpu_offload: bool = False
    compile: bool = False
    async_save: bool = False
    logprob_chunk_tokens: int | None = None

    def uses_varlen(self, *, cuda: bool) -> bool:
        """Whether packed rows are attended to without a dense mask."""
        if self.parallel.cp > 1 or self.packing in ("padded", "ragged"):
            return False
        return self.attention == "varlen" or (self.attention == "auto" and cuda and self.precision != "fp32")

    def uses_ragged(self, *, cuda: bool) -> bool:
        """Whether sequences stand in one row without padding."""
        if self.packing not in ("auto", "ragged"):
            return False
        return not (cuda or self.compile or self.parallel.cp > 1 or self.attention != "auto")


@dataclass(frozen=True)
class HfSettings:
    """What the generator reads of :class:`rl_generation_hf.config.HfGeneratorConfig`."""

    max_batch_tokens: int = 65536
    dtype: str = "float32"
    partial_rollouts: str = "continue"
