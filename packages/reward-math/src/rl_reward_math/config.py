"""Config model of the reward."""

from __future__ import annotations

from pydantic import Field
from rl_core.config.sections import RewardConfig


class MathConfig(RewardConfig):
    """Judge mathematical answers in worker processes that can be killed."""

    answer: str = Field("answer", description="Column of the answer: LaTeX, a number, \\boxed{…}, or text with #### N.")
    require_marker: bool = Field(
        False, description="Score completions without \\boxed{…} or #### as 0 instead of searching them for an answer."
    )
    float_rounding: int | None = Field(
        None,
        ge=0,
        description="Decimal places to which decimal numbers are compared; without it they have to be exactly equal.",
    )
    workers: int = Field(2, ge=1, description="Worker processes; started when the first completion is scored.")
    timeout_s: float = Field(5.0, gt=0, description="Longest a verdict may take; then its worker is killed.")
    timeout_reward: float = Field(0.0, description="Reward of a verdict that timed out or whose worker died.")
    memory_mb: int | None = Field(
        4096, ge=512, description="Address space of a worker in MiB; null for no limit. Ignored outside Linux."
    )
