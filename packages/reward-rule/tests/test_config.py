"""Patterns are checked when the config is read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from rl_reward_rule.config import ExactMatchConfig, FunctionConfig, NumericConfig, RegexConfig


@pytest.mark.parametrize(
    ("model", "field"), [(RegexConfig, "pattern"), (ExactMatchConfig, "extract"), (NumericConfig, "extract")]
)
def test_a_broken_pattern_is_refused(model: type, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(name="x", **{field: "(a"})
    assert caught.value.errors()[0]["msg"] == (
        "Value error, not a regular expression: missing ), unterminated subpattern at position 0"
    )


def test_a_function_must_be_a_reference() -> None:
    with pytest.raises(ValidationError) as caught:
        FunctionConfig(name="function", function="score")
    assert caught.value.errors()[0]["msg"] == (
        "Value error, must be 'module:function' or 'file.py:function', found 'score'"
    )
