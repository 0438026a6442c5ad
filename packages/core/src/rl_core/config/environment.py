"""The config model that environments build on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rl_core.config.sections import ComponentConfig


class EnvironmentConfig(ComponentConfig):
    """Base of every environment's config: the limits of a conversation, and of the environment's calls."""

    gives_reward: ClassVar[bool] = True
    """Whether it may reward conversations, so that the section ``rewards`` can be left out."""

    max_turns: int = Field(8, ge=1, description="Turns the model may take in a conversation.")
    max_tokens_per_turn: int | None = Field(
        None, ge=1, description="Upper bound on the tokens of one model turn; default: generator.max_new_tokens."
    )
    max_environment_tokens: int = Field(
        512, ge=1, description="Upper bound on the tokens of one environment message; longer ones are cut at their end."
    )
    on_long_turn: Literal["end", "answer"] = Field(
        "end",
        description="A turn that reaches its limit of tokens ends the conversation as truncated, or is answered like "
        "any other (for turns of a fixed length, such as moves of a game).",
    )
    on_error: Literal["raise", "end"] = Field(
        "raise",
        description="When the environment raises or takes too long: stop the run, or end the conversation as it is "
        "(counted in rollout/environment_errors).",
    )
    step_timeout_s: float = Field(60.0, gt=0, description="Longest that one call of the environment may take.")
    concurrency: int = Field(64, ge=1, description="Calls of the environment that run at once.")
    patience_s: float | None = Field(
        1.0,
        ge=0,
        description="How long conversations wait for those whose environment is slower before they continue without "
        "them; null: always wait, so that results are the same to the last bit however long calls take.",
    )
