"""Reading numbers as people and models write them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from rl_core.errors import DataError
from rl_reward_rule.config import NumericConfig
from rl_reward_rule.numbers import last_number
from rl_reward_rule.numeric import Numeric

HOSTILE = (
    *("9" * 100_000, "1," * 50_000, "1,111" * 20_000, "-$" * 50_000, "1e" * 50_000, "1 " * 50_000, "1 000 " * 20_000),
    *("1 1/" * 30_000, "^{ " * 30_000, "½" * 50_000, "१" * 100_000, "1e" + "9" * 100_000),
)


def reward(**fields: Any) -> Numeric:
    return Numeric(NumericConfig(name="numeric", **fields))


def test_a_completion_scores_by_its_last_number(sample: Callable) -> None:
    samples = [sample("48 + 24 = 72"), sample("72 is what I get from 48 and 24"), sample("none"), sample("$72.00.")]
    assert reward().score(samples) == [1.0, 0.0, 0.0, 1.0]


def test_answers_are_numbers_or_text_with_one(sample: Callable) -> None:
    samples = [sample("2500", answer="2,500"), sample("2500", answer=2500), sample("2500", answer="... #### 2,500")]
    assert reward().score(samples) == [1.0, 1.0, 1.0]


def test_extract_limits_where_the_number_is_looked_for(sample: Callable) -> None:
    samples = [sample("#### 72 (of 100)"), sample("72")]
    assert reward(extract=r"#### (\S+)").score(samples) == [1.0, 0.0]


def test_the_tolerance_is_absolute(sample: Callable) -> None:
    samples = [sample("72.4"), sample("72.6"), sample("71.5")]
    assert reward().score(samples) == [0.0, 0.0, 0.0]
    assert reward(tolerance=0.5).score(samples) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("answer", [2**53 + 1, Decimal(2**53 + 1), str(2**53 + 1), np.int64(2**53 + 1)])
def test_large_whole_numbers_are_compared_exactly(answer: Any, sample: Callable) -> None:
    samples = [sample(str(2**53 + one), answer=answer) for one in (0, 1, 2)]
    assert reward().score(samples) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("answer", [Decimal("0.10"), np.float32(0.1), np.float64(0.1), Fraction(1, 10), 0.1, "0.10"])
def test_every_kind_of_number_is_an_answer(answer: Any, sample: Callable) -> None:
    assert reward().score([sample("0.1", answer=answer), sample("1/10", answer=answer)]) == [1.0, 1.0]


def test_without_tolerance_a_float_is_the_number_that_is_written(sample: Callable) -> None:
    assert reward(tolerance=0).score([sample("0.1", answer=0.1), sample("0.3", answer=0.1 + 0.2)]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "answer",
    [
        *("seventy-two", True, np.True_, [72], float("nan"), Decimal("NaN"), Decimal("Infinity"), b"72"),
        *(datetime.date(2024, 1, 5), "2024-01-05", "12:30", "1,0000"),
    ],
)
def test_an_answer_without_a_number_names_the_row(answer: Any, sample: Callable) -> None:
    with pytest.raises(DataError) as caught:
        reward().score([sample("72", answer=answer)])
    assert str(caught.value) == (
        f"train.jsonl:3: there is no number in the answer {answer!r}, which reward 'numeric' compares with\n"
        "    use reward exact_match for answers that are words, or leave the row out"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_completions_cost_milliseconds(text: str) -> None:
    started = time.process_time()
    last_number(text)
    assert time.process_time() - started < 1.0
