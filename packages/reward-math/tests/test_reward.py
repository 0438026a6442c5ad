"""The reward: scores, metrics, rows without an answer, and where it may be called from."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rl_core.errors import DataError

RIGHT = {"reward": 1.0, "timeout": 0.0, "crashed": 0.0, "unparsed": 0.0}
WRONG = {**RIGHT, "reward": 0.0}
UNPARSED = {**WRONG, "unparsed": 1.0}


def test_scores_are_right_wrong_or_unparsed(reward: Callable, sample: Callable) -> None:
    samples = [
        sample(r"48+24 is \boxed{72}."),
        sample(r"\boxed{24}"),
        sample("so\n#### 72 clips", answer="48/2 = 24\n#### 72"),
        sample(r"\boxed{?}"),
        sample(""),
        sample("The answer is 72."),
        sample(r"\boxed{0.5}", answer=0.5),
    ]
    assert reward().score(samples) == [RIGHT, WRONG, RIGHT, UNPARSED, UNPARSED, RIGHT, RIGHT]
    assert reward().score([]) == []


def test_a_marker_can_be_required(reward: Callable, sample: Callable) -> None:
    samples = [sample("The answer is 72."), sample("#### 72")]
    assert reward(require_marker=True).score(samples) == [UNPARSED, RIGHT]


def test_a_timeout_scores_its_own_reward_and_is_counted(
    reward: Callable, sample: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    one = reward(timeout_s=2.0, timeout_reward=-0.5)
    with caplog.at_level(logging.WARNING, logger="rl_reward_math.reward"):
        scores = one.score([sample(r"\boxed{72}"), sample(r"\boxed{9^{9^{9^9}}}"), sample(r"\boxed{73}")])
    assert scores == [RIGHT, {"reward": -0.5, "timeout": 1.0, "crashed": 0.0, "unparsed": 0.0}, WRONG]
    assert caplog.messages == [
        "reward 'math': of 3 verdicts 1 took longer than 2 s and 0 ended with their worker",
    ]


def test_it_works_twice_from_a_thread_and_inside_an_event_loop(reward: Callable, sample: Callable) -> None:
    one, results = reward(), []
    samples = [sample(r"\boxed{72}"), sample(r"\boxed{73}")]

    async def inside() -> Any:
        return one.score(samples)

    results.append(one.score(samples))
    thread = threading.Thread(target=lambda: results.append(one.score(samples)))
    thread.start()
    thread.join()
    results.append(asyncio.run(inside()))
    assert results == [[RIGHT, WRONG]] * 3


def test_deadlines_hold_in_a_thread(reward: Callable, sample: Callable) -> None:
    one, results = reward(timeout_s=2.0), []
    samples = [sample(r"\boxed{9^{9^{9^9}}}"), sample(r"\boxed{72}")]
    thread = threading.Thread(target=lambda: results.extend(one.score(samples)))
    thread.start()
    thread.join()
    assert results == [{**WRONG, "timeout": 1.0}, RIGHT]


def test_the_answer_may_be_in_another_column(reward: Callable, sample: Callable) -> None:
    assert reward(answer="target").score([sample(r"\boxed{5}", target="5")]) == [RIGHT]


def test_a_missing_answer_column_is_an_error_with_the_nearest_name(reward: Callable, sample: Callable) -> None:
    with pytest.raises(DataError) as caught:
        reward(answer="anser").score([sample("72")])
    assert str(caught.value) == (
        "train.jsonl:3: there is no column 'anser', which reward 'math' compares with; did you mean 'answer'? "
        "(columns: prompt, answer)\n"
        "    map it in the data section (answer: <column>), or set the reward's answer to one of the columns"
    )


@pytest.mark.parametrize("answer", [None, "", " ", True, [72]])
def test_a_row_without_an_answer_is_an_error_that_names_it(answer: Any, reward: Callable, sample: Callable) -> None:
    with pytest.raises(DataError) as caught:
        reward().score([sample("72"), sample("72", answer=answer)])
    assert str(caught.value) == (
        f"train.jsonl:3: 'answer' is {answer!r}, which is no answer that reward 'math' can compare with\n"
        "    give the row text or a number, or leave it out"
    )
