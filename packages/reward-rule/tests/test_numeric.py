"""Reading numbers as people and models write them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from rl_core.errors import DataError
from rl_reward_rule.config import NumericConfig
from rl_reward_rule.numeric import Numeric, last_number


def reward(**fields: Any) -> Numeric:
    return Numeric(NumericConfig(name="numeric", **fields))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72),
        ("She sold 48+24 = <<48+24=72>>72 clips.", 72),
        ("The answer is 72.", 72),
        ("1,234", 1234),
        ("$1,234,567.50", 1234567.5),
        ("1,234,56", 56),
        ("it is -5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("\u22123", -3),
        ("10-5", 5),
        ("x = (2)-5", 5),
        ("- 5 apples", 5),
        ("+7", 7),
        ("50%", 50),
        ("3/4", 0.75),
        ("-3 / 4", -0.75),
        (".5", 0.5),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("**72**", 72),
        ("\\boxed{72}", 72),
        ("1/0", None),
        ("1e999", None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert last_number(text) == number


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


@pytest.mark.parametrize("answer", ["seventy-two", True, [72], float("nan")])
def test_an_answer_without_a_number_names_the_row(answer: Any, sample: Callable) -> None:
    with pytest.raises(DataError) as caught:
        reward().score([sample("72", answer=answer)])
    assert str(caught.value) == (
        f"train.jsonl:3: there is no number in the answer {answer!r}, which reward 'numeric' compares with\n"
        "    use reward exact_match for answers that are words, or leave the row out"
    )


@pytest.mark.parametrize("text", ["9" * 100_000, "1," * 50_000, "1,111" * 20_000, "-$" * 50_000, "1e" * 50_000])
def test_hostile_completions_cost_milliseconds(text: str) -> None:
    started = time.process_time()
    last_number(text)
    assert time.process_time() - started < 1.0
