"""The config models that plugins build on and the sections the core itself reads.

Every field has a description: ``rl schema`` and the docs are generated from it. Units are in the
field names (``_steps``, ``_tokens``, ``_s``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rl_core.config.adapter import AdapterConfig
from rl_core.config.paths import ModelPath
from rl_core.config.sampling import StopStrings, Temperature
from rl_core.config.section import Section
from rl_core.contracts.model import OptimizerSpec

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import BatchPlan


class ComponentConfig(Section):
    """Base of a plugin's config model; the section's ``name`` selected it."""

    name: str = Field(description="Which installed component to use (`rl plugins` lists them).")


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Shape after the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps over which the learning rate rises linearly.")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Final learning rate as a fraction of learning_rate.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW moment decay rates."
    )
    eps: float = Field(1e-8, gt=0, description="AdamW denominator term.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the global gradient norm to this; null for never.")

    def spec(self, learning_rate: float, total_steps: int) -> OptimizerSpec:
        """The value a backend is given; ``total_steps`` counts optimizer steps."""
        return OptimizerSpec(learning_rate=learning_rate, total_steps=total_steps, **self.model_dump())


class AlgorithmConfig(ComponentConfig):
    """Base of every algorithm's config."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named sets of field values; fields the user gives win."""

    preset: str | None = Field(None, description="A named set of field values; fields given explicitly win.")
    learning_rate: float = Field(1e-6, ge=0, description="Peak learning rate.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW and its schedule.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, Mapping) else None
        if not isinstance(name, str):
            return given  # none, or of a type that the field refuses
        if name not in cls.presets:
            options = f"choose one of {', '.join(cls.presets)}" if cls.presets else "this algorithm has no presets"
            raise ValueError(f"unknown preset {name!r}; {options}")
        return _under(cls.presets[name], given)

    def plan(self) -> BatchPlan:
        """The size of a step, known without building the algorithm; algorithms override this."""
        from rl_core.contracts.algorithm import BatchPlan

        return BatchPlan(input="examples", rows_per_step=1)


def _under(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the gaps filled from ``preset``, section by section."""
    merged = dict(preset)
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = _under(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


class BackendConfig(ComponentConfig):
    """Base of every backend's config."""

    adapters: ClassVar[frozenset[str]] = frozenset()
    """Kinds of ``model.adapter`` that the backend can train."""

    memory_settings: ClassVar[tuple[str, ...]] = ("max_tokens_per_microbatch",)
    """Fields to lower when a rank runs out of memory, the most effective first."""

    weight_transports: ClassVar[Mapping[str, str]] = {}
    """How it can send weights besides the object store: transport → its end, see ``rl_core.contracts.transport``."""

    max_tokens_per_microbatch: int = Field(
        16384, ge=1, description="Tokens a rank works on at once; the one memory knob. Results do not depend on it."
    )

    def world_size(self, gpus: int) -> int:
        """Number of worker processes (ranks) for a job with ``gpus`` GPUs in all (0: CPU)."""
        return max(gpus, 1)


class ReplicaRange(Section):
    """As many generator processes as there is room for, within bounds."""

    min: int = Field(1, ge=1, description="Fewest: the run waits for room for these.")
    max: int = Field(ge=1, description="Most.")

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaRange:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is less than min {self.min}")
        return self


class GeneratorConfig(ComponentConfig):
    """Base of every generator's config."""

    max_new_tokens: int = Field(256, ge=1, description="Upper bound on completion tokens, end token included.")
    temperature: Temperature = Field(1.0, gt=0, description="Sampling temperature of rollouts.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; 1 keeps every token.")
    top_k: int = Field(0, ge=0, description="Keep the k most likely tokens; 0 keeps every token.")
    stop: StopStrings = Field((), description="Strings that end a completion (kept in it).")
    replicas: Annotated[int, Field(ge=1)] | ReplicaRange = Field(
        1,
        description="Number of generator processes; {min: 1, max: 8} has as many as the cluster has room for.",
    )
    partial_rollouts: Literal["continue", "restart"] = Field(
        "continue",
        description="What happens to unfinished completions when new weights arrive (run.max_staleness): they continue "
        "with the new weights, or begin anew.",
    )

    placement: Literal["auto", "colocated", "separate"] = Field(
        "auto",
        description="On GPUs: colocated generators share the trainers' GPUs and take turns with them; separate ones "
        "have a GPU each besides run.gpus. auto: separate with run.max_staleness, else colocated.",
    )
    weight_transport: Literal["auto", "object_store", "ipc", "collective"] = Field(
        "auto",
        description="How new weights arrive: through Ray's object store, memory of a shared GPU (ipc), or a broadcast "
        "(collective). auto takes the fastest that the placement allows.",
    )

    weight_transports: ClassVar[Mapping[str, str]] = {}
    """How it can receive weights besides the object store: transport → its end."""

    memory_settings: ClassVar[tuple[str, ...]] = ()
    """Fields to lower when a generator runs out of memory, the most effective first."""

    @property
    def replica_range(self) -> tuple[int, int]:
        """Fewest and most generator processes."""
        if isinstance(self.replicas, ReplicaRange):
            return self.replicas.min, self.replicas.max
        return self.replicas, self.replicas


REWARD_TIMEOUT_S = 1800.0
"""As long as any other call of a run may take (``run.worker_timeout_s``)."""


class RewardConfig(ComponentConfig):
    """Base of every reward's config."""

    weight: float = Field(1.0, description="Factor in the weighted sum of rewards.")
    timeout_s: float | None = Field(
        REWARD_TIMEOUT_S,
        gt=0,
        description="Longest that scoring a batch may take. The reward runs in a process of its own, which is then "
        "killed and started again. null: it runs in the driver, without a deadline; so do, by default, rewards that "
        "cannot hang.",
    )
    memory_mb: int | None = Field(
        None,
        ge=64,
        description="Address space of the reward's process in MiB; null for no limit. Ignored outside Linux, and where "
        "the reward has no process of its own.",
    )
    on_error: Literal["error", "zero", "drop"] = Field(
        "error",
        description="When a sample's reward raises, is late, or is no finite number: stop the run, score the sample 0, "
        "or leave it out of training (counted in rollout/reward_failures).",
    )

    @property
    def cannot_hang(self) -> bool:
        """Whether scoring ends soon whatever the samples are: no code or pattern of the user's, no other process, no
        network. Such a reward needs no process of its own and gets one only where ``timeout_s`` is given.
        """
        return False

    @model_validator(mode="after")
    def _no_deadline_where_none_is_needed(self) -> Self:
        if "timeout_s" not in self.model_fields_set and self._deadline_is_the_cores and self.cannot_hang:
            object.__setattr__(self, "timeout_s", None)  # the model is frozen; the resolved config is to show it
        return self

    @property
    def process_timeout_s(self) -> float | None:
        """``timeout_s``, unless the reward's own config defines the field: then the reward keeps that deadline."""
        return self.timeout_s if self._deadline_is_the_cores else None

    @property
    def _deadline_is_the_cores(self) -> bool:
        owner = next(model for model in type(self).__mro__ if "timeout_s" in inspect.get_annotations(model))
        return owner is RewardConfig

    @property
    def distinguished_by(self) -> str:
        """What tells it from another reward of the same name in messages; empty where nothing does."""
        return ""


class EvaluatorConfig(ComponentConfig):
    """Base of every evaluator's config."""

    every: int | None = Field(
        None,
        ge=1,
        description="Evaluate after every this many steps; without it only before the first and after the last step.",
    )


class InitConfig(Section):
    """Shape of a model built from scratch with random weights."""

    architecture: str = Field(description="Hugging Face model type, e.g. qwen2, qwen3, llama.")
    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    layers: int = Field(ge=1, description="Number of transformer blocks.")
    heads: int = Field(ge=1, description="Attention heads.")
    kv_heads: int | None = Field(None, ge=1, description="Key/value heads (grouped-query attention); default: heads.")
    ffn: int | None = Field(None, ge=1, description="Width of the feed-forward part; default: 4 × hidden_size.")
    tie_embeddings: bool = Field(True, description="Share input and output embeddings.")
    extra: dict[str, Any] = Field(default_factory=dict, description="Further fields of the Hugging Face config.")

    @model_validator(mode="after")
    def _shape_fits(self) -> InitConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        return self


class ModelConfig(Section):
    """The model to train: an existing one, or a shape to start from scratch."""

    path: ModelPath | None = Field(None, description="Local Hugging Face folder or hub id.")
    init: InitConfig | None = Field(None, description="Start from scratch with this shape.")
    max_length: int = Field(1024, ge=2, description="Longest sequence in tokens, prompt and completion together.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model folder.")
    adapter: AdapterConfig | None = Field(
        None, description="Train low-rank matrices in place of the model's own weights."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.init is None):
            raise ValueError("give exactly one of 'path' (an existing model) and 'init' (from scratch)")
        return self
