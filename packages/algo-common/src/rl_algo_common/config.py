"""Sections and base classes of the configs of several algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from rl_core.config.problems import Problem
from rl_core.config.sections import AlgorithmConfig, Section
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.backend import LossSpec

from rl_algo_common.applicability import Rule, refuse, without_effect
from rl_algo_common.kl import KlEstimator

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig

CONSTANT_LENGTH = Rule(
    ("constant_length",),
    lambda c: c.loss_reduction == "constant",
    "with loss_reduction {c.loss_reduction}",
    "set loss_reduction: constant or remove {key}",
)
ENTROPY_METRIC = Rule(
    ("entropy_metric",),
    lambda c: c.entropy_coefficient == 0,
    "with an entropy_coefficient, which logs the entropy anyway",
)


class MismatchConfig(Section):
    """Correction for a generator whose probabilities μ differ from the trainer's, by w = π_old / μ."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("max",),
            lambda c: c.correction == "tis",
            "with mismatch.correction {c.correction}",
            "set mismatch.correction: tis or remove {key}",
        ),
        Rule(
            ("low", "high"),
            lambda c: c.correction in ("icepop", "seq-mask"),
            "with mismatch.correction {c.correction}",
            "set mismatch.correction: icepop or seq-mask or remove {key}",
        ),
        Rule(
            ("level",),
            lambda c: c.correction in ("tis", "icepop"),
            "with mismatch.correction {c.correction}",
            "set mismatch.correction: tis or icepop or remove {key}",
        ),
    )
    """Which fields do something; checked by the algorithm's config, which knows its presets."""

    correction: Literal["none", "tis", "icepop", "seq-mask"] = Field(
        "none",
        description="tis: weigh by w, at most max; icepop: weigh by w, 0 outside [low, high]; seq-mask: drop sequences "
        "whose geometric mean of w is outside [low, high].",
    )
    level: Literal["token", "sequence"] = Field(
        "token", description="For tis and icepop: w of each token, or the product over its sequence."
    )
    max: float | None = Field(None, gt=0, description="For tis: largest weight; default 2.")
    low: float | None = Field(
        None, ge=0, description="For icepop and seq-mask: lower end of what is kept; default 0.5 and 0.99."
    )
    high: float | None = Field(
        None, gt=0, description="For icepop and seq-mask: upper end of what is kept; default 5 and 1.01."
    )

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of w that the correction allows, defaults filled in."""
        if self.correction == "tis":
            return 0.0, 2.0 if self.max is None else self.max
        low, high = (0.5, 5.0) if self.correction == "icepop" else (0.99, 1.01)
        return low if self.low is None else self.low, high if self.high is None else self.high

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        low, high = self.bounds
        if self.correction in ("icepop", "seq-mask") and low >= high:
            raise ValueError(f"mismatch.low {low:g} must be below mismatch.high {high:g}")
        return self


class KlConfig(Section):
    """Penalty on the distance to the frozen starting model; algorithms derive from it, with further fields."""

    coefficient: float = Field(0.0, ge=0, description="Weight of the KL; at 0 the reference model is not loaded.")
    estimator: KlEstimator = Field(
        "k3",
        description="KL per token; with d = log π_ref - log π: k1 = -d (in the loss its gradient is 0 on average), "
        "k2 = d²/2, k3 = e^d - 1 - d.",
    )


class RowsConfig(AlgorithmConfig):
    """Base of algorithms that train on rows of data: what happens to those that are too long."""

    max_tokens: int | None = Field(
        None,
        ge=2,
        description="Longest sequence in tokens, prompt and completion together; default: model.max_length.",
    )
    on_long_row: Literal["error", "truncate", "skip"] = Field(
        "skip",
        description="What happens to a row of more than max_tokens or model.max_length: stop before the first step, "
        "cut off its end, or leave it out. Long rows are counted before training.",
    )


class PolicyGradientConfig(AlgorithmConfig):
    """``prompts_per_step × group_size`` completions make one step of ``epochs × minibatches`` updates.

    Algorithms derive from it, with defaults and further fields of their own. Their losses take the
    options of :meth:`loss_spec`; :mod:`rl_algo_common.losses` has the pieces they are made of.
    """

    rules: ClassVar[tuple[Rule, ...]] = (CONSTANT_LENGTH, ENTROPY_METRIC)
    """Which fields do something, those of ``mismatch`` aside; an algorithm with further ones lists all of its own."""

    prompts_per_step: int = Field(32, ge=1, description="Prompts sampled in one step.")
    on_long_prompt: Literal["error", "truncate", "skip"] = Field(
        "skip",
        description="What happens to a prompt that leaves no room for a completion in model.max_length: stop before "
        "the first step, cut off its beginning, or leave it out. Long prompts are counted before training.",
    )
    group_size: int = Field(1, ge=1, description="Completions per prompt.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps that share out the completions of a step.")
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
        description="Mean over all tokens (DAPO), over sequences of their token mean (GRPO paper), or the sum over "
        "sequences × constant_length (Dr. GRPO).",
    )
    constant_length: int | None = Field(
        None,
        ge=1,
        description="Tokens per sequence that loss_reduction: constant divides by: max_new_tokens, or 1 for sums over "
        "tokens (RLOO).",
    )
    entropy_coefficient: float = Field(0.0, ge=0, description="Weight of the entropy bonus (mean over tokens).")
    entropy_metric: bool = Field(False, description="Log the policy's entropy (costs a pass over the full logits).")
    mismatch: MismatchConfig = Field(
        default_factory=MismatchConfig, description="Correction for a generator that differs from the trainer."
    )

    skip_zero_gradient: bool = Field(
        True,
        description="Leave completions that cannot add to the gradient out of updates: without a KL or entropy term "
        "in the loss, masked ones and those whose advantage is 0. They still count in the normalizers.",
    )

    @property
    def sequences_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps (of each trained model) in one training step."""
        return self.minibatches * self.epochs

    @property
    def wants_entropy(self) -> bool:
        return self.entropy_metric or self.entropy_coefficient > 0

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term; an algorithm that can have one says when."""
        return False

    @property
    def zero_where(self) -> str | None:
        """The token column whose zeros mean no gradient; a KL or an entropy bonus gives one to every token."""
        every_token = self.kl_in_loss or self.entropy_coefficient > 0
        return "advantages" if self.skip_zero_gradient and not every_token else None

    def plan(self) -> BatchPlan:
        """The batch plan of one training step."""
        never_clips = "one update per step: the ratio to the old policy is 1, so clipping never acts"
        return BatchPlan(
            input="rollouts",
            rows_per_step=self.prompts_per_step,
            group_size=self.group_size,
            optimizer_steps=self.updates_per_step,
            notes=(never_clips,) if self.updates_per_step == 1 else (),
        )

    def loss_spec(self, function: str, *, temperature: float, **options: Any) -> LossSpec:
        """The policy loss ``function`` with what the fields here say, for log-probs at ``temperature``.

        Args:
            options: those the function takes besides ``clip_low``, ``clip_high``, ``dual_clip``,
                ``reduction``, ``constant_length``, ``entropy_coefficient`` and ``mismatch``.
        """
        low, high = self.mismatch.bounds
        shared = {
            "clip_low": self.clip_low,
            "clip_high": self.clip_high,
            "dual_clip": self.dual_clip,
            "reduction": self.loss_reduction,
            "constant_length": self.constant_length,
            "entropy_coefficient": self.entropy_coefficient,
            "mismatch": {
                "correction": self.mismatch.correction,
                "level": self.mismatch.level,
                "low": low,
                "high": high,
            },
        }
        return LossSpec(
            function=function,
            options={**shared, **options},
            outputs=("logprobs", "entropy") if self.wants_entropy else ("logprobs",),
            temperature=temperature,
            zero_where=self.zero_where,
        )

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """A length that does not fit the generator's, and sampling that log-probs do not describe."""
        if stage.generator is None:
            return
        generator = stage.generator.config
        limit = stage.max_completion_tokens
        if self.loss_reduction == "constant" and self.constant_length not in (1, limit):
            yield Problem(
                "constant_length",
                f"constant_length {self.constant_length} is not {stage.completion_limit_name} {limit}",
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
    def _minibatches_are_equal(self) -> Self:
        if self.sequences_per_step % self.minibatches:
            raise ValueError(
                f"minibatches {self.minibatches} does not divide the {self.sequences_per_step} sequences of a step "
                f"(prompts_per_step {self.prompts_per_step} × group_size {self.group_size})"
            )
        return self

    @model_validator(mode="after")
    def _constant_reduction_has_its_length(self) -> Self:
        if self.loss_reduction == "constant" and self.constant_length is None:
            raise ValueError("loss_reduction constant needs constant_length; set it to the generator's max_new_tokens")
        return self

    @model_validator(mode="after")
    def _given_fields_do_something(self) -> Self:
        preset = {} if self.preset is None else self.presets[self.preset]
        mismatch = without_effect(
            self.mismatch, MismatchConfig.rules, preset=preset.get("mismatch"), prefix="mismatch."
        )
        refuse([*without_effect(self, self.rules, preset=preset), *mismatch])
        return self
