"""Patterns are checked when the config is read, and give a reward a deadline."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from rl_core.config.sections import RewardConfig
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


@pytest.mark.parametrize(
    ("config", "deadline"),
    [
        (ExactMatchConfig(name="exact_match"), None),
        (NumericConfig(name="numeric"), None),
        (ExactMatchConfig(name="exact_match", extract="#### (.+)"), 1800.0),
        (NumericConfig(name="numeric", extract="#### (.+)"), 1800.0),
        (RegexConfig(name="regex", pattern="a"), 1800.0),
        (FunctionConfig(name="function", function="my_rewards:score"), 1800.0),
    ],
)
def test_what_runs_patterns_or_code_of_the_user_has_a_deadline(config: RewardConfig, deadline: float | None) -> None:
    assert config.process_timeout_s == deadline
