"""Config of proximal policy optimization."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, field_validator
from rl_core.config.applicability import refuse, without_effect
from rl_core.config.policy_gradient import MismatchConfig, PolicyGradientConfig
from rl_core.contracts.algorithm import BatchPlan

from rl_algo_ppo.sections import KlConfig, ValueConfig


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
        """What one training step consists of."""
        plan = super().plan()
        return replace(plan, notes=("the value model takes as many optimizer steps as the policy", *plan.notes))

    @field_validator("mismatch")
    @classmethod
    def _mismatch_fields_are_used(cls, mismatch: MismatchConfig) -> MismatchConfig:
        """Without presets the section says it all, so that the error can point at it."""
        refuse(without_effect(mismatch, MismatchConfig.rules, prefix="mismatch."))
        return mismatch
