"""Rewards that are functions in a file of the user's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rl_core.component import Component, ComponentChoice
from rl_core.errors import ConfigError, RLError
from rl_reward_rule.config import FunctionConfig
from rl_reward_rule.function import FunctionReward
from rl_rollout.rewards.scoring import InThisProcess, WeightedRewards

FILE = """
import asyncio
import numpy as np

def lengths(samples, scale=1.0):
    return [scale * len(s.completion) for s in samples]

def array(samples):
    return np.array([len(s.completion) for s in samples], np.float32)

async def slow(samples):
    await asyncio.sleep(0)
    return [True for s in samples]

async def slow_one(sample):
    await asyncio.sleep(0.01 * (3 - len(sample.completion)))
    return len(sample.completion)

def one(sample, scale=1.0):
    return scale * len(sample.completion)

def too_few(samples):
    return [1.0]

def constant(samples, value=None):
    return [value] * len(samples)

def number(samples):
    return 1.0

async def slow_number(samples):
    return 1.0

def broken(sample):
    return 1 / 0

async def slow_broken(samples):
    raise KeyError("target")
"""


@pytest.fixture
def reward(tmp_path: Path) -> Callable[..., FunctionReward]:
    (tmp_path / "own.py").write_text(FILE)

    def build(function: str, **fields: Any) -> FunctionReward:
        return FunctionReward(FunctionConfig(name="function", function=f"{tmp_path}/own.py:{function}", **fields))

    return build


def run(reward: FunctionReward, samples: list[Any]) -> Any:
    scores = reward.score(samples)

    async def wait() -> Any:
        return await scores

    return asyncio.run(wait()) if inspect.isawaitable(scores) else scores


@pytest.fixture
def samples(sample: Callable) -> list[Any]:
    return [sample("a"), sample("bb"), sample("ccc")]


def test_a_function_scores_the_list_and_takes_arguments(reward: Callable, samples: list[Any]) -> None:
    assert run(reward("lengths"), samples) == [1.0, 2.0, 3.0]
    assert run(reward("lengths", arguments={"scale": 2.0}), samples) == [2.0, 4.0, 6.0]
    assert run(reward("array"), samples) == [1.0, 2.0, 3.0]


def test_per_sample_functions_see_one_sample(reward: Callable, samples: list[Any]) -> None:
    assert run(reward("one", per_sample=True, arguments={"scale": 0.5}), samples) == [0.5, 1.0, 1.5]


def test_coroutines_are_awaited_and_keep_the_order(reward: Callable, samples: list[Any]) -> None:
    assert run(reward("slow"), samples) == [1.0, 1.0, 1.0]
    assert run(reward("slow_one", per_sample=True), samples) == [1.0, 2.0, 3.0]


def test_a_function_for_single_samples_is_recognised(reward: Callable, samples: list[Any], tmp_path: Path) -> None:
    for function in ("number", "slow_number"):
        with pytest.raises(ConfigError) as caught:
            run(reward(function), samples)
        assert str(caught.value).replace(str(tmp_path), "…") == (
            f"reward 'function' (…/own.py:{function}) returned 1.0, not a list with one score per sample\n"
            "    return a list, or set per_sample: true if it scores one sample"
        )


@pytest.mark.parametrize(
    ("function", "fields", "reason"),
    [
        ("too_few", {}, "returned 1 scores for 3 samples, but scores each of the 3 samples alone"),
        ("constant", {"arguments": {"value": None}}, "returned None, not a finite number"),
        ("constant", {"arguments": {"value": "1"}}, "returned '1', not a finite number"),
        ("broken", {"per_sample": True}, "raised ZeroDivisionError: division by zero (…/own.py:{line})"),
        ("slow_broken", {}, "raised KeyError: 'target' (…/own.py:{line})"),
    ],
)
def test_what_it_does_wrong_is_told_with_function_and_line(
    function: str, fields: dict[str, Any], reason: str, reward: Callable, samples: list[Any], tmp_path: Path
) -> None:
    built = reward(function, **fields)
    component = Component("reward", "function", "rl_reward_rule.function:FunctionReward", "x:Y", "")
    choice = ComponentChoice("reward", "function", component, "rl-reward-rule", built.config)
    with pytest.raises(RLError) as caught:
        WeightedRewards([(choice, InThisProcess(built))]).score(samples)
    line = next((n for n, text in enumerate(FILE.splitlines(), 1) if function in text), 0) + 1
    place = "" if function == "too_few" else "train.jsonl:3: "
    expected = f"{place}reward 'function' (rl-reward-rule; …/own.py:{function}) {reason.format(line=line)}"
    assert str(caught.value).splitlines()[0].replace(str(tmp_path), "…") == expected


def test_a_function_that_does_not_exist_is_found_when_the_reward_is_built(reward: Callable) -> None:
    with pytest.raises(ConfigError, match=r"own\.py has no function 'lenghts'"):
        reward("lenghts")
