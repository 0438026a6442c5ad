"""Config of group relative policy optimization and its relatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator
from rl_core.config.problems import Problem
from rl_core.config.sections import AlgorithmConfig
from rl_core.contracts.algorithm import BatchPlan

from rl_algo_grpo.applicability import without_effect
from rl_algo_grpo.presets import PRESETS
from rl_algo_grpo.sections import KlConfig, MismatchConfig, OverlongConfig

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


class GrpoConfig(AlgorithmConfig):
    """GRPO: ``prompts_per_step × group_size`` completions make one step of ``epochs × minibatches`` updates."""

    presets: ClassVar = PRESETS

    preset: str | None = Field(
        None, description=f"A published variant: {', '.join(PRESETS)}; fields given explicitly win."
    )
    prompts_per_step: int = Field(32, ge=1, description="Prompts sampled in one step.")
    group_size: int = Field(
        8, ge=1, description="Completions per prompt; they are compared with each other (1 only for reinforce++)."
    )
    minibatches: int = Field(1, ge=1, description="Optimizer steps that share out the completions of a step.")
    epochs: int = Field(1, ge=1, description="Passes over the completions of a step.")
    advantage: Literal["group", "rloo", "reinforce++", "reinforce++-baseline"] = Field(
        "group",
        description="Reward compared with the mean of its group (GRPO), of the others in its group (RLOO), or of all "
        "tokens of the step (REINFORCE++; -baseline: after subtracting the group's mean).",
    )
    advantage_scale: Literal["std", "none", "batch"] = Field(
        "std", description="Divide advantages by the group's standard deviation, by nothing, or by the batch's."
    )
    advantage_ddof: Literal[0, 1] = Field(
        1, description="Standard deviation with n - ddof in the denominator (1: sample, 0: population)."
    )
    loss: Literal["clip", "gspo", "cispo", "reinforce"] = Field(
        "clip",
        description="Clipped ratio per token (PPO, GRPO) or per sequence (gspo), log-prob weighted by the clipped "
        "ratio (cispo), or log-prob alone (reinforce).",
    )
    clip_low: float = Field(0.2, ge=0, le=1, description="Lower clip range: the ratio is held above 1 - clip_low.")
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
        None,
        ge=1,
        description="Tokens per sequence that loss_reduction: constant divides by: max_new_tokens, or 1 for sums over "
        "tokens (RLOO).",
    )
    kl: KlConfig = Field(default_factory=KlConfig, description="Penalty on the distance to the starting model.")
    entropy_coefficient: float = Field(0.0, ge=0, description="Weight of the entropy bonus (mean over tokens).")
    entropy_metric: bool = Field(False, description="Log the policy's entropy (costs a pass over the full logits).")
    mismatch: MismatchConfig = Field(
        default_factory=MismatchConfig, description="Correction for a generator that differs from the trainer."
    )
    dynamic_sampling: bool = Field(
        False, description="Replace prompts whose completions all got the same reward by further prompts (DAPO)."
    )
    max_resample_rounds: int = Field(
        9, ge=1, description="For dynamic_sampling: further draws of prompts_per_step prompts in one step at most."
    )
    overlong: OverlongConfig = Field(
        default_factory=OverlongConfig, description="Completions near the length limit or cut off by it (DAPO)."
    )

    @property
    def sequences_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in one training step."""
        return self.minibatches * self.epochs

    @property
    def whitens(self) -> bool:
        """Whether advantages are made mean 0 and standard deviation 1 over the tokens of a step."""
        return self.advantage in ("reinforce++", "reinforce++-baseline")

    @property
    def uses_reference(self) -> bool:
        return self.kl.coefficient > 0

    @property
    def kl_in_reward(self) -> bool:
        return self.uses_reference and self.kl.placement == "reward"

    @property
    def kl_in_loss(self) -> bool:
        return self.uses_reference and self.kl.placement == "loss"

    @property
    def wants_entropy(self) -> bool:
        return self.entropy_metric or self.entropy_coefficient > 0

    def plan(self) -> BatchPlan:
        """What one training step consists of."""
        notes = []
        if self.updates_per_step == 1 and self.loss != "reinforce":
            notes.append("one update per step: the ratio to the old policy is 1, so clipping never acts")
        if self.updates_per_step > 1 and self.loss == "reinforce":
            notes.append(
                "loss reinforce takes every update of a step as if its completions came from the newest weights"
            )
        return BatchPlan(
            input="rollouts",
            rows_per_step=self.prompts_per_step,
            group_size=self.group_size,
            optimizer_steps=self.updates_per_step,
            max_resample_rounds=self.max_resample_rounds if self.dynamic_sampling else 0,
            notes=tuple(notes),
        )

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """Lengths that do not fit the generator's, and sampling that log-probs do not describe."""
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
        longest = self.overlong.max_tokens
        if self.overlong.mode == "shape" and longest is not None and longest != limit:
            never = longest - self.overlong.buffer >= limit
            yield Problem(
                "overlong.max_tokens",
                f"overlong.max_tokens {longest} is not generator.max_new_tokens {limit}"
                + (", and no completion gets long enough to be shaped" if never else ""),
                fix=f"set overlong.max_tokens: {limit}",
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
    def _minibatches_are_equal(self) -> GrpoConfig:
        if self.sequences_per_step % self.minibatches:
            raise ValueError(
                f"minibatches {self.minibatches} does not divide the {self.sequences_per_step} sequences of a step "
                f"(prompts_per_step {self.prompts_per_step} × group_size {self.group_size})"
            )
        return self

    @model_validator(mode="after")
    def _a_group_can_be_compared(self) -> GrpoConfig:
        if self.group_size == 1 and self.advantage != "reinforce++":
            raise ValueError(
                f"advantage {self.advantage} compares the completions of a prompt, and group_size 1 leaves only one; "
                "set group_size to 2 or more, or advantage: reinforce++"
            )
        if self.group_size == 1 and self.dynamic_sampling:
            raise ValueError(
                "dynamic_sampling drops prompts whose completions all got the same reward, which with group_size 1 "
                "are all prompts; set group_size to 2 or more, or dynamic_sampling: false"
            )
        return self

    @model_validator(mode="after")
    def _constant_reduction_has_its_length(self) -> GrpoConfig:
        if self.loss_reduction == "constant" and self.constant_length is None:
            raise ValueError("loss_reduction constant needs constant_length; set it to the generator's max_new_tokens")
        return self

    @model_validator(mode="after")
    def _given_fields_do_something(self) -> GrpoConfig:
        messages = without_effect(self)
        if messages:
            raise ValueError("\n    ".join(messages))
        return self
