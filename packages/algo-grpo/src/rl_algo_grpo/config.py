"""Config of group relative policy optimization and its relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from rl_algo_common.applicability import Rule
from rl_algo_common.config import CONSTANT_LENGTH, ENTROPY_METRIC, KlConfig, PolicyGradientConfig
from rl_core.config.problems import Problem
from rl_core.config.sections import Section
from rl_core.contracts.algorithm import BatchPlan

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


_GROUP_STD = {"advantage": "group", "advantage_scale": "std"}
_CLIP = {"loss": "clip", "clip_low": 0.2, "clip_high": 0.2}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Shao et al. 2024, DeepSeekMath, eq. 3 and section 4.2.
    "grpo": {
        **_GROUP_STD,
        **_CLIP,
        "loss_reduction": "sequence",
        "kl": {"in": "loss", "coefficient": 0.04, "estimator": "k3"},
    },
    # Liu et al. 2025, "Understanding R1-Zero-like training"; no KL term.
    "dr_grpo": {"advantage": "group", "advantage_scale": "none", **_CLIP, "loss_reduction": "constant"},
    # Yu et al. 2025, DAPO, eq. 8 and 13; no KL term.
    "dapo": {
        **_GROUP_STD,
        **_CLIP,
        "clip_high": 0.28,
        "loss_reduction": "token",
        "dynamic_sampling": True,
        "overlong": {"mode": "shape"},
    },
    # Zheng et al. 2025, GSPO, section 5.1.
    "gspo": {**_GROUP_STD, "loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "loss_reduction": "sequence"},
    # Chen et al. 2025, MiniMax-M1, eq. 4: no lower bound and no number for the upper one, which is that
    # of Khatri et al. 2025, ScaleRL: ρ ≤ 5.
    "cispo": {**_GROUP_STD, "loss": "cispo", "clip_low": 1.0, "clip_high": 4.0, "loss_reduction": "token"},
    # Ahmadian et al. 2024, "Back to basics": a completion is one action, so log-probs are summed, not averaged.
    "rloo": {
        "advantage": "rloo",
        "advantage_scale": "none",
        "loss": "reinforce",
        "loss_reduction": "constant",
        "constant_length": 1,
        "kl": {"in": "reward", "coefficient": 0.03, "estimator": "k1"},
    },
    # Hu et al. 2025, REINFORCE++.
    "reinforce++": {
        "advantage": "reinforce++",
        **_CLIP,
        "loss_reduction": "token",
        "kl": {"in": "reward", "coefficient": 0.01, "estimator": "k1"},
    },
    "reinforce++-baseline": {
        "advantage": "reinforce++-baseline",
        **_CLIP,
        "loss_reduction": "token",
        "kl": {"in": "loss", "coefficient": 0.001, "estimator": "k2"},
    },
}
"""The published variants: what makes the method. Sizes, learning rates and lengths belong to the task."""

RULES = (
    Rule(("clip_low", "clip_high"), lambda c: c.loss != "reinforce", "with loss {c.loss}"),
    Rule(("dual_clip",), lambda c: c.loss == "clip", "with loss {c.loss}", "set loss: clip or remove {key}"),
    CONSTANT_LENGTH,
    Rule(
        ("advantage_scale", "advantage_ddof"),
        lambda c: not c.whitens,
        "with advantage {c.advantage}, which whitens over the batch",
    ),
    Rule(("advantage_ddof",), lambda c: c.whitens or c.advantage_scale != "none", "while advantage_scale is none"),
    Rule(
        ("kl.estimator", "kl.in"),
        lambda c: c.kl.coefficient > 0,
        "while kl.coefficient is 0",
        "set kl.coefficient above 0 or remove {key}",
    ),
    ENTROPY_METRIC,
    Rule(
        ("max_resample_rounds",),
        lambda c: c.dynamic_sampling,
        "without dynamic_sampling",
        "set dynamic_sampling: true or remove {key}",
    ),
    Rule(
        ("overlong.max_tokens", "overlong.buffer_tokens"),
        lambda c: c.overlong.mode == "shape",
        "with overlong.mode {c.overlong.mode}",
        "set overlong.mode: shape or remove {key}",
    ),
)
"""Fields that have no effect because of others; given, they are refused."""


class PlacedKlConfig(KlConfig):
    """Penalty on the distance to the frozen starting model."""

    model_config = ConfigDict(serialize_by_alias=True)

    placement: Literal["loss", "reward"] = Field(
        "loss", alias="in", description="Add the KL of every token to the loss, or take it off the rewards."
    )


class OverlongConfig(Section):
    """Treatment of completions that come near the length limit, or are cut off by it."""

    mode: Literal["none", "shape", "mask"] = Field(
        "none",
        description="shape: take up to 1 off the reward of long completions; mask: leave truncated ones out of the "
        "loss.",
    )
    max_tokens: int | None = Field(
        None, ge=1, description="For shape: completion length from which the full 1 is taken off: max_new_tokens."
    )
    buffer_tokens: int | None = Field(
        None, ge=1, description="For shape: tokens before max_tokens at which it starts; default: max_tokens / 5."
    )

    @property
    def buffer(self) -> int:
        """Tokens over which the penalty grows from 0 to 1."""
        return self.buffer_tokens or max((self.max_tokens or 0) // 5, 1)

    @model_validator(mode="after")
    def _buffer_fits(self) -> OverlongConfig:
        if self.mode == "shape" and self.max_tokens is None:
            raise ValueError(
                "overlong.mode shape needs overlong.max_tokens; set it to the generator's max_new_tokens, "
                "or set overlong.mode: none"
            )
        if self.mode == "shape" and self.max_tokens is not None and self.buffer > self.max_tokens:
            raise ValueError(
                f"overlong.buffer_tokens {self.buffer} must be at most overlong.max_tokens {self.max_tokens}"
            )
        return self


class GrpoConfig(PolicyGradientConfig):
    """GRPO: ``prompts_per_step × group_size`` completions make one step of ``epochs × minibatches`` updates."""

    presets: ClassVar = PRESETS
    rules: ClassVar = RULES

    preset: str | None = Field(
        None, description=f"A published variant: {', '.join(PRESETS)}; fields given explicitly win."
    )
    group_size: int = Field(
        8, ge=1, description="Completions per prompt; they are compared with each other (1 only for reinforce++)."
    )
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
    kl: PlacedKlConfig = Field(
        default_factory=PlacedKlConfig, description="Penalty on the distance to the starting model."
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

    def plan(self) -> BatchPlan:
        """The batch plan of one training step."""
        plan = super().plan()
        notes = plan.notes
        if self.loss == "reinforce":
            stale = "loss reinforce takes every update of a step as if its completions came from the newest weights"
            notes = (stale,) if self.updates_per_step > 1 else ()
        return replace(plan, max_resample_rounds=self.max_resample_rounds if self.dynamic_sampling else 0, notes=notes)

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """Also a shaping length that does not fit the generator's."""
        yield from super().problems(stage)
        if stage.generator is None:
            return
        limit = stage.max_completion_tokens
        longest = self.overlong.max_tokens
        if self.overlong.mode == "shape" and longest is not None and longest != limit:
            never = longest - self.overlong.buffer >= limit
            yield Problem(
                "overlong.max_tokens",
                f"overlong.max_tokens {longest} is not {stage.completion_limit_name} {limit}"
                + (", and no completion gets long enough to be shaped" if never else ""),
                fix=f"set overlong.max_tokens: {limit}",
                severity="warning",
            )

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
