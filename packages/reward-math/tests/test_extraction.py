"""Finding the marked answer."""

from __future__ import annotations

import datetime
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from rl_reward_math.extraction import gold_answer, marked_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{72}.", "72"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{ x : x > 1 \}} and \{", r"\{ x : x > 1 \}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5", "5"),
        (r"\\boxed{5}", "5"),
        (r"a \\\boxed{5}", "5"),
        (r"\boxed{3} was wrong, it is \boxed{\frac{1", "3"),
        (r"\boxed{\frac{1", None),
        (r"} \boxed{5} {", "5"),
        (r"\boxed{}", ""),
        ("48+24=72\n#### 72", "72"),
        ("#### 10\nno\n####72 \nmore", "72"),
        ("#### 10\n####\n", "10"),
        ("##### 10", None),
        (r"#### 10 \boxed{5} #### 20", "5"),
        ("72", None),
        ("", None),
    ],
)
def test_the_last_box_counts_and_without_one_the_last_hashes(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("72", "72"),
        (" 72\n", "72"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"It is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("48/2 = <<48/2=24>>24\n#### 2,125", "2,125"),
        (72, "72"),
        (0.1, "0.1"),
        (1e-07, "0.0000001"),
        ("", None),
        (r"\boxed{}", None),
        (None, None),
        (True, None),
        ([72], None),
        (float("nan"), None),
        (Decimal("5.00"), "5.00"),
        (Decimal("1E+3"), "1000"),
        (Decimal("NaN"), None),
        (np.int64(2**53 + 1), "9007199254740993"),
        (np.float64(0.1), "0.1"),
        (np.True_, None),
        pytest.param(10**5000, None, id="5,001 digits"),
        (datetime.date(2024, 1, 5), None),
    ],
)
def test_answers_of_rows_are_text_numbers_or_rationales(value: Any, answer: str | None) -> None:
    assert gold_answer(value) == answer


@pytest.mark.parametrize("text", [r"\boxed{" * 20_000, "#" * 100_000, "\\" * 100_000, "{}" * 50_000, "####\n" * 20_000])
def test_hostile_completions_cost_milliseconds(text: str) -> None:
    started = time.process_time()
    marked_answer(text)
    assert time.process_time() - started < 1.0
