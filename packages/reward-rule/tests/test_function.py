"""Rewards that are functions in a file of the user's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rl_core.errors import ConfigError, RLError
from rl_reward_rule.config import FunctionConfig
from rl_reward_rule.function import FunctionReward

FILE = """
import asyncio
import numpy as np

def lengths(samples, scale=1.0):
    return [scale * len(s.completion) for s in samples]

def array(samples):
    return np.array([len(s.completion) for s in samples], np.float32)

def with_parts(samples):
    return [{"reward": 1, "format": np.float32(0.5)} for s in samples]

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


def message_of(reward: FunctionReward, samples: list[Any], tmp_path: Path) -> str:
    with pytest.raises(RLError) as caught:
        run(reward, samples)
    return str(caught.value).replace(str(tmp_path), "…")


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


def test_dicts_keep_their_parts_as_plain_numbers(reward: Callable, samples: list[Any]) -> None:
    scores = run(reward("with_parts"), samples)
    assert scores == [{"reward": 1.0, "format": 0.5}] * 3
    assert type(scores[0]["format"]) is float


def test_per_sample_functions_see_one_sample(reward: Callable, samples: list[Any]) -> None:
    assert run(reward("one", per_sample=True, arguments={"scale": 0.5}), samples) == [0.5, 1.0, 1.5]


def test_coroutines_are_awaited_and_keep_the_order(reward: Callable, samples: list[Any]) -> None:
    assert run(reward("slow"), samples) == [1.0, 1.0, 1.0]
    assert run(reward("slow_one", per_sample=True), samples) == [1.0, 2.0, 3.0]


def test_the_wrong_number_of_scores_is_an_error(reward: Callable, samples: list[Any], tmp_path: Path) -> None:
    assert message_of(reward("too_few"), samples, tmp_path) == (
        "reward 'function' (…/own.py:too_few) returned 1 scores for 3 samples"
    )
    assert message_of(reward("number"), samples, tmp_path) == (
        "reward 'function' (…/own.py:number) returned 1.0, not a list with one score per sample\n"
        "    return a list, or set per_sample: true if it scores one sample"
    )


@pytest.mark.parametrize("value", [None, "1", float("nan"), float("inf")])
def test_scores_that_are_no_finite_numbers_are_errors(
    value: Any, reward: Callable, samples: list[Any], tmp_path: Path
) -> None:
    bad = reward("constant", arguments={"value": {"reward": 1.0, "part": value}})
    expected = f"reward 'function' (…/own.py:constant) returned {value!r} for train.jsonl:3, not a finite number"
    if value is None or isinstance(value, str):
        assert message_of(reward("constant", arguments={"value": value}), samples, tmp_path) == expected
    assert message_of(bad, samples, tmp_path) == expected


def test_a_dict_needs_the_key_reward(reward: Callable, samples: list[Any], tmp_path: Path) -> None:
    assert message_of(reward("constant", arguments={"value": {"score": 1}}), samples, tmp_path) == (
        "reward 'function' (…/own.py:constant) returned a dict without the key 'reward' for train.jsonl:3: {'score': 1}"
    )


def test_an_exception_names_the_function_and_the_row(reward: Callable, samples: list[Any], tmp_path: Path) -> None:
    assert message_of(reward("broken", per_sample=True), samples, tmp_path) == (
        "reward 'function' (…/own.py:broken) raised ZeroDivisionError for train.jsonl:3: division by zero"
    )
    assert message_of(reward("slow_broken"), samples, tmp_path) == (
        "reward 'function' (…/own.py:slow_broken) raised KeyError for 3 samples: 'target'"
    )


def test_a_function_that_does_not_exist_is_found_when_the_reward_is_built(reward: Callable) -> None:
    with pytest.raises(ConfigError, match=r"own\.py has no function 'lenghts'"):
        reward("lenghts")
