"""The parts of the config that have a section of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from rl_core.config.sections import Section


class KlConfig(Section):
    """Penalty on the distance to the frozen starting model."""

    model_config = ConfigDict(serialize_by_alias=True)

    coefficient: float = Field(0.0, ge=0, description="Weight of the KL term; at 0 the reference model is not loaded.")
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3",
        description="With d = log π_ref - log π: k1 = -d (in the loss its gradient is 0 on average), k2 = d²/2, "
        "k3 = e^d - 1 - d.",
    )
    placement: Literal["loss", "reward"] = Field(
        "loss", alias="in", description="Add the KL of every token to the loss, or take it off the rewards."
    )


class OverlongConfig(Section):
    """What happens to completions that come near the length limit, or are cut off by it."""

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
