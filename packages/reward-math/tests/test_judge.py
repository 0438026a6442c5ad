"""Verdicts on single answers, in this process."""

from __future__ import annotations

import pytest
from rl_reward_math.judge import judge
from rl_reward_math.verdict import Question, Verdict


def verdict(gold: str, answer: str, **fields: int) -> str:
    return judge(Question(gold=gold, answer=answer), **fields).value


def found(gold: str, completion: str) -> str:
    return judge(Question(gold=gold, answer=None, completion=completion)).value


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("72", "72.0"),
        ("72", "$72"),
        ("18", r"\$18.00"),
        ("2,125", "2125"),
        ("9", "3^2"),
        ("1000", r"10^3"),
        ("36", "36_{10}"),
        (r"\frac{1}{2}", "0.5"),
        (r"1\frac{4}{5}", "1.8"),
        (r"1\frac{4}{5}", "9/5"),
        ("1.25", r"\frac54"),
        (r"3\sqrt{5}", r"\sqrt{45}"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}"),
        ("2k+2", "2(k+1)"),
        ("(a+5)(b+2)", "(b+2)(a+5)"),
        ("3, 5, 7", "7, 3, 5"),
        (r"3 \pm 2\sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2"),
        ("x=5", "5"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"(0,9)\cup(9,36)", r"(9,36)\cup(0,9)"),
        ("5x - 7y + 11z + 4 = 0", "10x - 14y + 22z + 8 = 0"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        ("204_5", "204_{5}"),
        ("204_5", "204"),
        (r"15\%", "15 percent"),
        ("3m", "3m"),
        (r"\text{(B)}", "B"),
        (r"\text{east}", "East"),
        (r"9^{9^{9^9}}", r"9^{9^{9^9}}"),
    ],
)
def test_equal_answers(gold: str, answer: str) -> None:
    assert verdict(gold, answer) == "equal"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("72", "-72"),
        ("72", "720"),
        ("17", "17,000"),
        ("5", "5 million"),
        ("2", "2x"),
        ("3", "3m"),
        ("3m", "3"),
        ("5c", "5h"),
        ("x^2+3t", "x^2+3"),
        (".0000672", ".0000673"),
        (r"2\times10^{-23}", r"3\times10^{-23}"),
        (r"\frac13", "0.333333"),
        (r"\pi", "3.14159265"),
        ("204_5", "204_6"),
        ("204_5", "204_{10}"),
        ("204", "204_5"),
        ("(8,-2)", "(-2,8)"),
        ("(8,-2)", "(15,-29)"),
        ("(3,4]", "[3,4)"),
        ("even", "neve"),
        (r"\text{even}", r"\text{odd}"),
        (r"5 \text{ ft } 6 \text{ in}", r"5 \text{ ft } 7 \text{ in}"),
        ("p - q", "q - p"),
        (r"\cot x", r"\tan x"),
    ],
)
def test_unequal_answers(gold: str, answer: str) -> None:
    assert verdict(gold, answer) == "unequal"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("100000", "1,00,000"),
        ("123", "１２３"),
        ("1234.5", "１，２３４．５"),
        ("34", "٣٤"),
        ("-3", "－3"),
        ("-3", "‑3"),
        ("-3", "—3"),
        ("100", "10²"),
        ("0.5", "½"),
        ("5.5", "5½"),
        ("x^{-1}", "x⁻¹"),
        ("1234", "1'234"),
    ],
)
def test_other_characters_for_the_same_number(gold: str, answer: str) -> None:
    assert verdict(gold, answer) == "equal"
    assert found(gold, f"So it is ${answer}$.") == "equal"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *(("0", "1,00,000"), ("34", "12,34"), ("1234", "12,34"), ("0", "1,0000"), ("30", "12:30"), ("56", "1.234,56")),
        *(("10", "10²"), ("102", "10²"), ("51/2", "5½"), ("3", "–3"), ("9007199254740993", "9007199254740992")),
    ],
)
def test_a_part_of_a_number_is_not_the_number(gold: str, answer: str) -> None:
    assert verdict(gold, answer) != "equal"
    assert found(gold, f"So it is ${answer}$.") != "equal"


@pytest.mark.parametrize("answer", ["", "$", "70 2", "72 ? 3", r"\frac{1}{", "72)", "1+" * 20])
def test_answers_that_cannot_be_read(answer: str) -> None:
    assert verdict("72", answer) == "unparsed"


def test_rounding_is_an_option() -> None:
    assert verdict(r"\frac13", "0.333333", float_rounding=6) == "equal"
    assert verdict(r"\frac13", "0.3333", float_rounding=6) == "unequal"
    assert verdict(r"\frac13", "0.33", float_rounding=2) == "equal"


@pytest.mark.parametrize(
    ("gold", "completion", "expected"),
    [
        ("72", "Half of 48 is 24, so the answer is 72.", Verdict.EQUAL),
        ("72", "Half of 48 is 24, so the answer is 24.", Verdict.UNEQUAL),
        (r"\frac{1}{2}", r"Thus $x = \dfrac{1}{2}$.", Verdict.EQUAL),
        ("1, 2", "The answer is $2$ and $1$.", Verdict.EQUAL),
        (r"5.4 \text{ cents}", r"It costs $5.4 \text{ cents}$.", Verdict.EQUAL),
        (r"\text{east}", r"The answer is $\text{east}$.", Verdict.EQUAL),
        (r"\text{east}", "east", Verdict.EQUAL),
        (r"\text{east}", "It points up.", Verdict.UNPARSED),
        ("x^2+1", "$x^2 + 1$", Verdict.EQUAL),
        ("72", "I do not know.", Verdict.UNPARSED),
    ],
)
def test_completions_without_a_marker_are_searched(gold: str, completion: str, expected: Verdict) -> None:
    assert found(gold, completion) == expected
