"""Formats."""

from __future__ import annotations

from collections.abc import Callable

from rl_reward_rule.config import RegexConfig
from rl_reward_rule.regex import Regex


def test_search_finds_the_pattern_anywhere_and_fullmatch_needs_it_all(sample: Callable) -> None:
    samples = [sample("#### 72"), sample("so\n#### 72\n"), sample("72")]
    assert Regex(RegexConfig(name="regex", pattern=r"#### \d+")).score(samples) == [1.0, 1.0, 0.0]
    assert Regex(RegexConfig(name="regex", pattern=r"#### \d+", match="fullmatch")).score(samples) == [1.0, 0.0, 0.0]


def test_a_dot_spans_lines_and_case_can_be_ignored(sample: Callable) -> None:
    pattern = "<think>.+</think>.+"
    samples = [sample("<think>a\nb</think>\n72"), sample("<THINK>a</THINK>72")]
    assert Regex(RegexConfig(name="regex", pattern=pattern, match="fullmatch")).score(samples) == [1.0, 0.0]
    assert Regex(RegexConfig(name="regex", pattern=pattern, ignore_case=True)).score(samples) == [1.0, 1.0]
