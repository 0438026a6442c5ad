"""Config of group relative policy optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from rl_core.config.sections import AlgorithmConfig, Section
from rl_core.contracts.algorithm import BatchPlan


class KlConfig(Section):
    """Penalty on the distance to the frozen starting model."""

    coefficient: float = Field(
        0.0, ge=0, description="Weight of the KL term in the loss; at 0 the reference model is not loaded."
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3",
        description="With d = log π_ref - log π: k1 = -d (its gradient is 0 on average), k2 = d²/2, k3 = e^d - 1 - d.",
    )

    @model_validator(mode="after")
    def _estimator_is_used(self) -> KlConfig:
        if self.coefficient == 0 and "estimator" in self.model_fields_set:
            raise ValueError(
                "kl.estimator has no effect while kl.coefficient is 0; "
                "set kl.coefficient above 0 or remove kl.estimator"
            )
        return self


class GrpoConfig(AlgorithmConfig):
    """GRPO: ``prompts_per_step × group_size`` completions make one step of ``epochs × minibatches`` updates."""

    prompts_per_step: int = Field(32, ge=1, description="Prompts sampled in one step.")
    group_size: int = Field(8, ge=2, description="Completions per prompt; they are compared with each other.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps that share out the completions of a step.")
    epochs: int = Field(1, ge=1, description="Passes over the completions of a step.")
    clip_low: float = Field(0.2, ge=0, lt=1, description="Lower clip range: the ratio is held above 1 - clip_low.")
    clip_high: float = Field(0.2, ge=0, description="Upper clip range: the ratio is held below 1 + clip_high.")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="Most a token with advantage A < 0 may cost, as a multiple of |A|; null for no bound.",
    )
    loss_reduction: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="Mean over all tokens (DAPO), over sequences of their token mean (GRPO paper), or the sum over "
        "sequences × constant_length (Dr. GRPO).",
    )
    constant_length: int | None = Field(
        None, ge=1, description="Tokens per sequence that loss_reduction: constant divides by, usually max_new_tokens."
    )
    advantage_scale: Literal["std", "none", "batch"] = Field(
        "std", description="Divide advantages by the group's standard deviation, by nothing, or by the batch's."
    )
    advantage_ddof: Literal[0, 1] = Field(
        1, description="Standard deviation with n - ddof in the denominator (1: sample, 0: population)."
    )
    kl: KlConfig = Field(default_factory=KlConfig, description="Penalty on the distance to the starting model.")
    entropy_metric: bool = Field(False, description="Log the policy's entropy (costs a pass over the full logits).")

    @property
    def sequences_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in one training step."""
        return self.minibatches * self.epochs

    def plan(self) -> BatchPlan:
        """What one training step consists of."""
        notes = ()
        if self.updates_per_step == 1:
            notes = ("one update per step: the ratio to the old policy is 1, so clipping never acts",)
        return BatchPlan(
            input="rollouts",
            rows_per_step=self.prompts_per_step,
            group_size=self.group_size,
            optimizer_steps=self.updates_per_step,
            notes=notes,
        )

    @model_validator(mode="after")
    def _minibatches_are_equal(self) -> GrpoConfig:
        if self.sequences_per_step % self.minibatches:
            raise ValueError(
                f"minibatches {self.minibatches} does not divide the {self.sequences_per_step} sequences of a step "
                f"(prompts_per_step {self.prompts_per_step} × group_size {self.group_size})"
            )
        return self

    @model_validator(mode="after")
    def _constant_length_belongs_to_constant(self) -> GrpoConfig:
        if self.loss_reduction == "constant" and self.constant_length is None:
            raise ValueError("loss_reduction constant needs constant_length; set it to the generator's max_new_tokens")
        if self.loss_reduction != "constant" and self.constant_length is not None:
            raise ValueError(
                f"constant_length has no effect with loss_reduction {self.loss_reduction}; "
                "set loss_reduction: constant or remove constant_length"
            )
        return self

    @model_validator(mode="after")
    def _ddof_is_used(self) -> GrpoConfig:
        if self.advantage_scale == "none" and "advantage_ddof" in self.model_fields_set:
            raise ValueError("advantage_ddof has no effect while advantage_scale is none; remove advantage_ddof")
        return self
