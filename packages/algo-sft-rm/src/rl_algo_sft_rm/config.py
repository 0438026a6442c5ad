"""Config of supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from rl_core.config.sections import AlgorithmConfig
from rl_core.contracts.algorithm import BatchPlan


class SftConfig(AlgorithmConfig):
    """Supervised fine-tuning: one optimizer step per training step, on ``sequences_per_step`` rows."""

    learning_rate: float = Field(1e-5, ge=0, description="Peak learning rate.")
    sequences_per_step: int = Field(64, ge=1, description="Data rows in one optimizer step, over all ranks.")
    loss_on: Literal["completion", "all"] = Field(
        "completion", description="Tokens trained on: the completion (assistant turns), or all, prompt included."
    )
    max_tokens: int | None = Field(
        None, ge=2, description="Longest row in tokens, prompt and completion together; null for no limit of its own."
    )
    on_long_row: Literal["error", "truncate", "skip"] = Field(
        "error", description="What happens to a row of more than max_tokens: stop, cut off its end, or leave it out."
    )

    @model_validator(mode="after")
    def _on_long_row_has_a_limit(self) -> SftConfig:
        if self.max_tokens is None and "on_long_row" in self.model_fields_set:
            raise ValueError("on_long_row has no effect without max_tokens; set max_tokens or remove on_long_row")
        return self

    def plan(self) -> BatchPlan:
        """What one training step consists of."""
        return BatchPlan(input="examples", rows_per_step=self.sequences_per_step)
