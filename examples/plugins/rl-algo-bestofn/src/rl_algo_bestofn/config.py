"""What a user may write about the algorithm, the reward and the environment in the YAML."""

from __future__ import annotations

from pydantic import Field, model_validator
from rl_core.config.environment import EnvironmentConfig
from rl_core.config.sections import AlgorithmConfig, RewardConfig
from rl_core.contracts.algorithm import BatchPlan


class BestOfNConfig(AlgorithmConfig):
    """The size of a step and what is kept of it; ``learning_rate`` and ``optimizer`` come from the base class."""

    prompts_per_step: int = Field(16, ge=1, description="Prompts in one training step.")
    group_size: int = Field(8, ge=2, description="Completions sampled per prompt: the n of best-of-n.")
    keep: int = Field(1, ge=1, description="Completions per prompt that are trained on, the best ones.")
    min_reward: float | None = Field(
        None, description="Train on no completion with a lower reward; null trains on the best whatever it got."
    )

    @model_validator(mode="after")
    def _keeps_fewer_than_it_samples(self) -> BestOfNConfig:
        if self.keep >= self.group_size:
            raise ValueError(f"keep {self.keep} of group_size {self.group_size} selects nothing; lower keep")
        return self

    def plan(self) -> BatchPlan:
        """What one training step consists of; known without building the algorithm, for ``rl check``."""
        note = f"trains on the best {self.keep} of {self.group_size} completions of a prompt"
        return BatchPlan(
            input="rollouts", rows_per_step=self.prompts_per_step, group_size=self.group_size, notes=(note,)
        )


class RepeatConfig(RewardConfig):
    """The wanted length."""

    length: int = Field(4, ge=1, description="Characters that a perfect completion has.")

    @property
    def cannot_hang(self) -> bool:
        """It compares characters: no deadline, and so no process of its own."""
        return True


class GuessConfig(EnvironmentConfig):
    """How often the model may guess, and what a late hit is worth."""

    max_turns: int = Field(5, ge=1, description="Guesses the model has.")
    decay: float = Field(0.8, ge=0, le=1, description="Factor on the reward of 1 for every wrong guess before the hit.")
