"""Config of proximal policy optimization."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator
from rl_core.config.applicability import refuse, without_effect
from rl_core.config.paths import ModelPath
from rl_core.config.policy_gradient import MismatchConfig, PolicyGradientConfig
from rl_core.config.sections import OptimizerConfig, Section
from rl_core.contracts.algorithm import BatchPlan


class KlConfig(Section):
    """Penalty on the distance to the frozen starting model, taken off the reward of every token."""

    coefficient: float = Field(
        0.0,
        ge=0,
        description="Weight β of the penalty (at the start, if adaptive); at 0 the reference model is not loaded.",
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="KL per token; with d = log π_ref - log π_old: k1 = -d, k2 = d²/2, k3 = e^d - 1 - d."
    )
    controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="Whether β stays, or is steered so that the KL reaches target."
    )
    target: float | None = Field(
        None, gt=0, description="For controller: adaptive, the KL per completion in nats (sum over its tokens)."
    )
    horizon: int = Field(
        10_000,
        ge=1,
        description="For controller: adaptive, completions over which β changes by at most about 20 %.",
    )

    @model_validator(mode="after")
    def _fields_are_used(self) -> KlConfig:
        for name in ("estimator", "controller", "target", "horizon"):
            if given(self, name) and self.coefficient == 0:
                raise ValueError(
                    f"kl.{name} has no effect while kl.coefficient is 0; set kl.coefficient above 0 or remove kl.{name}"
                )
            if given(self, name) and self.controller == "fixed" and name in ("target", "horizon"):
                raise ValueError(
                    f"kl.{name} has no effect with kl.controller fixed; set kl.controller: adaptive or remove kl.{name}"
                )
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


def given(section: Section, name: str) -> bool:
    """Whether the user set the field to something (null is nothing)."""
    return name in section.model_fields_set and getattr(section, name) is not None


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
    kl: KlConfig = Field(default_factory=KlConfig, description="Penalty on the distance to the starting model.")
    value: ValueConfig = Field(default_factory=ValueConfig, description="The value model and its optimizer.")

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
