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


class MismatchConfig(Section):
    """Correction for a generator whose probabilities μ differ from the trainer's, by w = π_old / μ."""

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
    def _range_is_not_empty(self) -> MismatchConfig:
        low, high = self.bounds
        if self.correction in ("icepop", "seq-mask") and low >= high:
            raise ValueError(f"mismatch.low {low:g} must be below mismatch.high {high:g}")
        return self


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
