"""Formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rl_reward_rule import regex
from rl_reward_rule.config import RegexConfig
from rl_reward_rule.regex import Regex
from rl_rollout.rewards.isolated import RewardProcess
from rl_rollout.rewards.outcomes import Failure

SCORE = "float(self._match(sample.completion) is not None)"


def test_search_finds_the_pattern_anywhere_and_fullmatch_needs_it_all(sample: Callable) -> None:
    samples = [sample("#### 72"), sample("so\n#### 72\n"), sample("72")]
    assert Regex(RegexConfig(name="regex", pattern=r"#### \d+")).score(samples) == [1.0, 1.0, 0.0]
    assert Regex(RegexConfig(name="regex", pattern=r"#### \d+", match="fullmatch")).score(samples) == [1.0, 0.0, 0.0]


def test_a_dot_spans_lines_and_case_can_be_ignored(sample: Callable) -> None:
    pattern = "<think>.+</think>.+"
    samples = [sample("<think>a\nb</think>\n72"), sample("<THINK>a</THINK>72")]
    assert Regex(RegexConfig(name="regex", pattern=pattern, match="fullmatch")).score(samples) == [1.0, 0.0]
    assert Regex(RegexConfig(name="regex", pattern=pattern, ignore_case=True)).score(samples) == [1.0, 1.0]


def test_a_pattern_that_backtracks_for_ever_is_ended_by_its_deadline(sample: Callable) -> None:
    """The matcher holds Python's lock: no thread of the same process could end it."""
    process = RewardProcess(
        who="reward 'regex' (rl-reward-rule)",
        reference="rl_reward_rule.regex:Regex",
        package="rl-reward-rule",
        config=RegexConfig(name="regex", pattern="(a+)+b", timeout_s=1),
    )
    assert process.attempt([sample("aab")]) == [{"reward": 1.0}]
    late = process.attempt([sample("a" * 40)])
    process.close()
    line = Path(regex.__file__).read_text().splitlines().index(f"        return [{SCORE} for sample in samples]") + 1
    assert late == Failure(f"took longer than timeout_s: 1 ({regex.__file__}:{line})", late=True)
