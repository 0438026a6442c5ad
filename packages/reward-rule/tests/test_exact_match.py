"""Equality with the answer, and its options."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from rl_core.errors import DataError
from rl_reward_rule.config import ExactMatchConfig
from rl_reward_rule.exact_match import ExactMatch


def reward(**fields: Any) -> ExactMatch:
    return ExactMatch(ExactMatchConfig(name="exact_match", **fields))


def test_only_the_whole_answer_scores(sample: Callable) -> None:
    samples = [sample("72"), sample(" 72\n"), sample("172"), sample("It is 72"), sample("")]
    assert reward().score(samples) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_white_space_counts_without_strip(sample: Callable) -> None:
    assert reward(strip=False).score([sample("72"), sample(" 72")]) == [1.0, 0.0]


def test_case_counts_unless_ignored(sample: Callable) -> None:
    samples = [sample("paris", answer="Paris")]
    assert reward().score(samples) == [0.0]
    assert reward(ignore_case=True).score(samples) == [1.0]


def test_extract_takes_the_first_group_of_the_last_match(sample: Callable) -> None:
    samples = [sample("#### 10\nno, wait\n#### 72"), sample("#### 72\n#### 10"), sample("72")]
    assert reward(extract="#### (.+)").score(samples) == [1.0, 0.0, 0.0]
    assert reward(extract=r"\d+").score([sample("first 1, then 72.")]) == [1.0]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (72, "72"),
        (2**53 + 1, "9007199254740993"),
        (Decimal("5.00"), "5.00"),
        (np.int64(5), "5"),
        (0.5, "0.5"),
        (np.float32(-2.25), "-2.25"),
        (True, "True"),
        (datetime.date(2024, 1, 5), "2024-01-05"),
        (datetime.datetime(2024, 1, 5, 12, 30), "2024-01-05T12:30:00"),
    ],
)
def test_answers_of_other_types_are_compared_as_text(answer: Any, text: str, sample: Callable) -> None:
    assert reward().score([sample(text, answer=answer), sample(text + "0", answer=answer)]) == [1.0, 0.0]


@pytest.mark.parametrize("answer", [[1], {"a": 1}, b"72", float("nan"), pytest.param(10**5000, id="5,001 digits")])
def test_an_answer_without_one_text_names_the_row(answer: Any, sample: Callable) -> None:
    with pytest.raises(DataError, match=r"^train.jsonl:3: the answer is a .*cannot compare with text"):
        reward().score([sample("72", answer=answer)])


@pytest.mark.parametrize("answer", [5.0, -0.0, 1e-7, 1e22, np.float32(5), np.float64(5)], ids=repr)
def test_a_float_that_is_written_in_several_ways_names_the_row_and_the_reward_for_numbers(
    answer: Any, sample: Callable
) -> None:
    with pytest.raises(
        DataError, match=r"^train.jsonl:3: the answer is the float \S+, which (?s:.*)the reward numeric"
    ):
        reward().score([sample("5", answer=answer)])


def test_the_answer_may_be_in_another_column(sample: Callable) -> None:
    assert reward(answer="target").score([sample("b", target="b")]) == [1.0]


def test_a_missing_answer_column_is_an_error_with_the_nearest_name(sample: Callable) -> None:
    with pytest.raises(DataError) as caught:
        reward(answer="anser").score([sample("72")])
    assert str(caught.value) == (
        "train.jsonl:3: there is no column 'anser', which reward 'exact_match' compares with; did you mean 'answer'? "
        "(columns: prompt, answer)\n"
        "    map it in the data section (answer: <column>), or set the reward's answer to one of the columns"
    )
    with pytest.raises(DataError) as caught:
        reward().score([sample("72", answer=None)])
    assert str(caught.value).splitlines()[0] == (
        "train.jsonl:3: 'answer' is null, which reward 'exact_match' compares with (columns: prompt, answer)"
    )
