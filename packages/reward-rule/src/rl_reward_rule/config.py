"""Config models of the rewards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from rl_core.config.paths import FunctionRef
from rl_core.config.sections import RewardConfig


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A Python regular expression, checked when the config is read."""

_EXTRACT = "Regular expression that finds the answer in the completion: the last match, its first group if it has one."


class ExactMatchConfig(RewardConfig):
    """Compare text with the row's answer."""

    answer: str = Field("answer", description="Column that holds the answer.")
    extract: Pattern | None = Field(None, description=_EXTRACT)
    strip: bool = Field(True, description="Ignore white space around both texts.")
    ignore_case: bool = Field(False, description="Ignore upper and lower case.")

    @property
    def cannot_hang(self) -> bool:
        """Without a pattern of the user's, which may backtrack for ever."""
        return self.extract is None


class RegexConfig(RewardConfig):
    """Match the completion against a pattern."""

    pattern: Pattern = Field(description="Python regular expression; . also matches a newline.")
    match: Literal["search", "fullmatch"] = Field("search", description="Anywhere in the completion, or all of it.")
    ignore_case: bool = Field(False, description="Ignore upper and lower case.")


class NumericConfig(RewardConfig):
    """Compare a number with the row's answer."""

    answer: str = Field("answer", description="Column of the answer: a number, or text whose last number counts.")
    extract: Pattern | None = Field(None, description=_EXTRACT + " Its last number counts.")
    tolerance: float = Field(1e-6, ge=0, description="Largest absolute difference that counts as equal.")

    @property
    def cannot_hang(self) -> bool:
        """Without a pattern of the user's, which may backtrack for ever."""
        return self.extract is None


class FunctionConfig(RewardConfig):
    """Call a function of your own."""

    function: FunctionRef = Field(description="module:function or file.py:function.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the function.")
    per_sample: bool = Field(False, description="Call it with one sample at a time instead of with the whole list.")

    @property
    def distinguished_by(self) -> str:
        """The function."""
        return self.function
