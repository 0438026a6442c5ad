"""Configs of supervised fine-tuning and of reward models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator
from rl_algo_common.config import RowsConfig
from rl_core.config.problems import Problem
from rl_core.contracts.algorithm import BatchPlan

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


class SftConfig(RowsConfig):
    """Supervised fine-tuning: one optimizer step per training step, on ``sequences_per_step`` rows."""

    learning_rate: float = Field(1e-5, ge=0, description="Peak learning rate.")
    sequences_per_step: int = Field(64, ge=1, description="Data rows in one optimizer step, over all ranks.")
    loss_on: Literal["completion", "all"] = Field(
        "completion", description="Tokens trained on: the completion (assistant turns), or all, prompt included."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target that is spread evenly over the vocabulary; 0 for none."
    )
    z_loss: float = Field(
        0.0, ge=0, description="Coefficient of logsumexp(logits)², which keeps logits small (1e-4, say); 0 for none."
    )

    def plan(self) -> BatchPlan:
        """The batch plan of one training step."""
        return BatchPlan(input="examples", rows_per_step=self.sequences_per_step)


class RmConfig(RowsConfig):
    """A reward model: one optimizer step per training step, on ``pairs_per_step`` pairs."""

    learning_rate: float = Field(1e-5, ge=0, description="Peak learning rate.")
    pairs_per_step: int = Field(64, ge=1, description="Pairs (data rows) in one optimizer step, over all ranks.")
    margin: float | str = Field(
        0.0,
        description="By how much the chosen reward should exceed the rejected one: a number, or the name of a row "
        "column that holds one for each pair.",
    )
    center_rewards_coefficient: float = Field(
        0.0, ge=0, description="Coefficient of (chosen + rejected reward)², which centres rewards at 0; 0 for none."
    )

    @model_validator(mode="after")
    def _margin_is_not_negative(self) -> Self:
        if isinstance(self.margin, float) and self.margin < 0:
            raise ValueError(f"margin {self.margin:g} would ask for a chosen reward below the rejected one")
        if self.margin == "":
            raise ValueError("margin is the name of a row column or a number; an empty name is neither")
        return self

    def plan(self) -> BatchPlan:
        """The batch plan of one training step."""
        return BatchPlan(
            input="examples",
            rows_per_step=self.pairs_per_step,
            notes=(f"an example is a pair of sequences: {2 * self.pairs_per_step:,} sequences per step",),
        )

    def problems(self, stage: StageConfig) -> Iterator[Problem]:
        """A part of the stage that wants the model to write."""
        if stage.generator is not None:
            yield Problem(
                "",
                "a reward model only scores, so the generator has nothing to generate with",
                fix="remove the generator and the evaluators that need it; the evaluator 'loss' tests a reward model",
            )
