"""A small plugin package: one or two components of every kind, as a third party would write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from rl_core.component import Component
from rl_core.config.paths import ConfigPath, FunctionRef, ModelPath
from rl_core.config.problems import Problem
from rl_core.config.sections import (
    AlgorithmConfig,
    BackendConfig,
    ComponentConfig,
    EvaluatorConfig,
    GeneratorConfig,
    RewardConfig,
    Section,
)
from rl_core.contracts.algorithm import BatchPlan
from rl_core.hookspecs import hookimpl


class KlConfig(Section):
    coefficient: float = Field(0.0, ge=0, description="Strength.")
    place: Literal["loss", "reward"] = Field("loss", alias="in", description="Where it is added.")


class ClipConfig(AlgorithmConfig):
    prompts_per_step: int = Field(4, ge=1, description="Prompts.")
    group_size: int = Field(8, ge=2, description="Completions per prompt.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps per step.")
    kl: KlConfig = Field(default_factory=KlConfig, description="KL term.")

    def plan(self) -> BatchPlan:
        return BatchPlan(
            "rollouts",
            self.prompts_per_step,
            group_size=self.group_size,
            optimizer_steps=self.minibatches,
            notes=("one note",),
        )

    def problems(self, stage: Any) -> Iterable[Problem]:
        if self.minibatches > self.prompts_per_step:
            yield Problem("minibatches", f"more than the {self.prompts_per_step} prompts of a step", "use fewer")


class ImitateConfig(AlgorithmConfig):
    rows_per_step: int = Field(2, ge=1, description="Rows.")


class TinyConfig(BackendConfig):
    ranks_per_gpu: int = Field(1, ge=1, description="Ranks.")

    def world_size(self, gpus: int) -> int:
        if gpus % 2 and gpus > 1:
            raise ValueError(f"needs an even number of GPUs, the config has {gpus}")
        return max(gpus, 1) * self.ranks_per_gpu


class SamplerConfig(GeneratorConfig):
    pass


class RolloutsConfig(ComponentConfig):
    pass


class LinesConfig(ComponentConfig):
    path: ConfigPath = Field(description="File.")
    model: ModelPath | None = Field(None, description="Folder or hub id.")
    parse: FunctionRef | None = Field(None, description="Function.")
    keep: int | Literal["all"] = Field("all", description="Rows to keep.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="What to do.")
    extra: dict[str, Any] = Field(default_factory=dict, description="Anything.")


class DigitsConfig(RewardConfig):
    strict: bool = Field(True, description="Strictness.")


class TextTokenizerConfig(ComponentConfig):
    alphabet: str = Field("", description="Characters.")


class HeldConfig(EvaluatorConfig):
    pass


class RemoteLoggerConfig(ComponentConfig):
    project: str = Field("p", description="Project.")
    api_key: str | None = Field(None, description="Key.")
    password: SecretStr | None = Field(None, description="Password.")


class CrashingConfig(RewardConfig):
    divisor: int = Field(1, description="Must not be zero.")

    @field_validator("divisor")
    @classmethod
    def _divide(cls, value: int) -> int:
        return 1 // value

    def problems(self, stage: Any) -> Iterable[Problem]:
        return [stage.nothing]


class StrictPairConfig(RewardConfig):
    low: float = Field(0.0, description="Low.")
    high: float = Field(1.0, description="High.")

    @model_validator(mode="after")
    def _ordered(self) -> StrictPairConfig:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class NoComponentConfig:
    """Derives from nothing."""


def _component(kind: str, name: str, config: str, **options: Any) -> Component:
    return Component(kind, name, "acme_kit:Factory", f"acme_kit:{config}", f"The {name} {kind}", **options)


COMPONENTS = (
    _component("algorithm", "clip", "ClipConfig", needs=("generator", "rewards", "data")),
    _component("algorithm", "imitate", "ImitateConfig", needs=("data",)),
    _component("backend", "tiny", "TinyConfig"),
    _component("backend", "absent", "TinyConfig", imports=("no_such_module", "json")),
    _component("generator", "sampler", "SamplerConfig"),
    _component("rollout", "drawn", "RolloutsConfig"),
    _component("tokenizer", "hf", "TextTokenizerConfig"),
    _component("tokenizer", "letters", "TextTokenizerConfig"),
    _component("data_source", "lines", "LinesConfig"),
    _component("reward", "crashing", "CrashingConfig"),
    _component("reward", "digits", "DigitsConfig"),
    _component("reward", "ordered", "StrictPairConfig"),
    _component("reward", "shapeless", "NoComponentConfig"),
    _component("reward", "gone", "GoneConfig"),
    _component("evaluator", "held", "HeldConfig", needs=("eval_data",), uses=("generator", "rewards")),
    _component("logger", "remote", "RemoteLoggerConfig"),
)


class Hooks:
    """What the package's ``validate_config`` finds; tests set ``found`` or ``error``."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.error: Exception | None = None
        self.seen: list[str] = []

    @hookimpl
    def validate_config(self, config: Any) -> Iterable[Any]:
        self.seen.append(config.name)
        if self.error is not None:
            raise self.error
        return self.found
