"""Config of proximal policy optimization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from rl_core.config.problems import Problem
from rl_core.config.sections import AlgorithmConfig
from rl_core.contracts.algorithm import BatchPlan

from rl_algo_ppo.sections import KlConfig, MismatchConfig, ValueConfig, given

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


class PpoConfig(AlgorithmConfig):
    """PPO: ``prompts_per_step × group_size`` completions make one step of ``epochs × minibatches`` updates of both."""

    prompts_per_step: int = Field(64, ge=1, description="Prompts sampled in one step.")
    group_size: int = Field(1, ge=1, description="Completions per prompt.")
    minibatches: int = Field(4, ge=1, description="Optimizer steps that share out the completions of a step.")
    epochs: int = Field(1, ge=1, description="Passes over the completions of a step.")
    clip_low: float = Field(0.2, ge=0, le=1, description="Lower clip range: the ratio is held above 1 - clip_low.")
    clip_high: float = Field(0.2, ge=0, description="Upper clip range: the ratio is held below 1 + clip_high.")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="Most a token with advantage A < 0 may cost, as a multiple of |A|; null for no bound.",
    )
    loss_reduction: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="Mean over all tokens, over sequences of their token mean, or the sum over "
        "sequences × constant_length.",
    )
    constant_length: int | None = Field(
        None, ge=1, description="Tokens per sequence that loss_reduction: constant divides by, usually max_new_tokens."
    )
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
    entropy_coefficient: float = Field(0.0, ge=0, description="Weight of the entropy bonus (mean over tokens).")
    entropy_metric: bool = Field(False, description="Log the policy's entropy (costs a pass over the full logits).")
    kl: KlConfig = Field(default_factory=KlConfig, description="Penalty on the distance to the starting model.")
    value: ValueConfig = Field(default_factory=ValueConfig, description="The value model and its optimizer.")
    mismatch: MismatchConfig = Field(
        default_factory=MismatchConfig, description="Correction for a generator that differs from the trainer."
    )

    @property
    def sequences_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of each of the two models in one training step."""
        return self.minibatches * self.epochs

    def plan(self) -> BatchPlan:
        """What one training step consists of."""
        notes = ["the value model takes as many optimizer steps as the policy"]
        if self.updates_per_step == 1:
            notes.append("one update per step: the ratio to the old policy is 1, so clipping never acts")
        return BatchPlan(
            input="rollouts",
            rows_per_step=self.prompts_per_step,
            group_size=self.group_size,
            optimizer_steps=self.updates_per_step,
            notes=tuple(notes),
        )

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """A length that does not fit the generator's, and sampling that log-probs do not describe."""
        if stage.generator is None:
            return
        generator = stage.generator.config
        limit = generator.max_new_tokens
        if self.loss_reduction == "constant" and self.constant_length not in (1, limit):
            yield Problem(
                "constant_length",
                f"constant_length {self.constant_length} is not generator.max_new_tokens {limit}",
                fix=f"set constant_length: {limit}, or 1 for sums over tokens",
                severity="warning",
            )
        if generator.top_p < 1 or generator.top_k > 0:
            yield Problem(
                "",
                f"generator.top_p {generator.top_p:g} and generator.top_k {generator.top_k} leave tokens out, but "
                "log-probs are those of the full distribution, so the gradient is biased",
                fix="set generator.top_p: 1 and generator.top_k: 0",
                severity="warning",
            )

    @model_validator(mode="after")
    def _minibatches_are_equal(self) -> PpoConfig:
        if self.sequences_per_step % self.minibatches:
            raise ValueError(
                f"minibatches {self.minibatches} does not divide the {self.sequences_per_step} sequences of a step "
                f"(prompts_per_step {self.prompts_per_step} × group_size {self.group_size})"
            )
        return self

    @model_validator(mode="after")
    def _constant_length_belongs_to_constant(self) -> PpoConfig:
        if self.loss_reduction == "constant" and self.constant_length is None:
            raise ValueError("loss_reduction constant needs constant_length; set it to the generator's max_new_tokens")
        if self.loss_reduction != "constant" and self.constant_length is not None:
            raise ValueError(
                f"constant_length has no effect with loss_reduction {self.loss_reduction}; "
                "set loss_reduction: constant or remove constant_length"
            )
        return self

    @model_validator(mode="after")
    def _entropy_is_asked_for_once(self) -> PpoConfig:
        if self.entropy_coefficient > 0 and given(self, "entropy_metric"):
            raise ValueError(
                "entropy_metric has no effect with an entropy_coefficient, which logs the entropy anyway; "
                "remove entropy_metric"
            )
        return self
