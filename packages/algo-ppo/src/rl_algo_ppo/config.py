"""Config of proximal policy optimization."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from rl_algo_common.applicability import Rule, refuse, without_effect
from rl_algo_common.config import KlConfig, MismatchConfig, PolicyGradientConfig
from rl_algo_common.kl import KlEstimator
from rl_core.config.paths import ModelPath
from rl_core.config.sections import OptimizerConfig, Section
from rl_core.contracts.algorithm import BatchPlan


class AdaptiveKlConfig(KlConfig):
    """Penalty on the distance to the frozen starting model, taken off the reward of every token."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("estimator", "controller", "target", "horizon"),
            lambda c: c.coefficient > 0,
            "while kl.coefficient is 0",
            "set kl.coefficient above 0 or remove {key}",
        ),
        Rule(
            ("target", "horizon"),
            lambda c: c.coefficient == 0 or c.controller == "adaptive",
            "with kl.controller fixed",
            "set kl.controller: adaptive or remove {key}",
        ),
    )

    estimator: KlEstimator = Field(
        "k1", description="KL per token; with d = log π_ref - log π_old: k1 = -d, k2 = d²/2, k3 = e^d - 1 - d."
    )
    controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="Whether the coefficient stays, or is steered from there so that the KL reaches target."
    )
    target: float | None = Field(
        None, gt=0, description="For controller: adaptive, the KL per completion in nats (sum over its tokens)."
    )
    horizon: int = Field(
        10_000,
        ge=1,
        description="For controller: adaptive, completions over which the coefficient changes by at most about 20 %.",
    )

    @model_validator(mode="after")
    def _fields_are_used(self) -> Self:
        refuse(without_effect(self, self.rules, prefix="kl."))
        if self.controller == "adaptive" and self.target is None:
            raise ValueError("kl.controller adaptive needs kl.target, the KL per completion in nats, e.g. 6.0")
        return self


class ValueConfig(Section):
    """The model that predicts the reward still to come, trained together with the policy."""

    path: ModelPath | None = Field(
        None,
        description="Folder or hub id to start it from, a reward model for example; default: the policy's start. "
        "A folder without a scalar head gets one that is 0.",
    )
    learning_rate: float = Field(1e-5, ge=0, description="Peak learning rate of the value model.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Its AdamW and schedule.")
    clip: float | None = Field(
        0.2,
        gt=0,
        description="Values count as at most this far from those before the step, in units of reward; null for no "
        "bound.",
    )


class PpoConfig(PolicyGradientConfig):
    """PPO: ``prompts_per_step × group_size`` completions make one step of ``epochs × minibatches`` updates of both."""

    prompts_per_step: int = Field(64, ge=1, description="Prompts sampled in one step.")
    minibatches: int = Field(4, ge=1, description="Optimizer steps that share out the completions of a step.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount per token of the reward still to come.")
    lam: float = Field(
        0.95, ge=0, le=1, description="λ of generalized advantage estimation; 1 uses rewards alone, less uses values."
    )
    bootstrap_truncated: bool = Field(
        False, description="A completion cut off by length ends with the value of its last state instead of 0."
    )
    whiten_advantages: bool = Field(
        True, description="Shift and scale the advantages of a step to mean 0 and standard deviation 1."
    )
    kl: AdaptiveKlConfig = Field(
        default_factory=AdaptiveKlConfig, description="Penalty on the distance to the starting model."
    )
    value: ValueConfig = Field(default_factory=ValueConfig, description="The value model and its optimizer.")

    @property
    def uses_reference(self) -> bool:
        return self.kl.coefficient > 0

    def plan(self) -> BatchPlan:
        """The batch plan of one training step."""
        plan = super().plan()
        return replace(plan, notes=("the value model takes as many optimizer steps as the policy", *plan.notes))

    @field_validator("mismatch")
    @classmethod
    def _mismatch_fields_are_used(cls, mismatch: MismatchConfig) -> MismatchConfig:
        """Without presets the section says it all, so that the error can point at it."""
        refuse(without_effect(mismatch, MismatchConfig.rules, prefix="mismatch."))
        return mismatch
