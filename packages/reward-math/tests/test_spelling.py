"""One spelling for many."""

from __future__ import annotations

import pytest
from rl_reward_math import spelling


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (r"$5$", "5"),
        (r"\( 5 \)", "5"),
        ("**5**", "5"),
        (r"\text{72 clips}", "72 clips"),
        (r"\text{east}", r"\text{east}"),
        ("$1$ and $2$", "1 and 2"),
        (r"\$32,\!348", "32,348"),
        (r"11,\! 111,\! 111,\! 100", "11,111,111,100"),
        (r"58{,}500", "58,500"),
        (r"1\,000\,000", "1000000"),
        ("1 000 000", "1000000"),
        ("1 00", "1 00"),
        (r"\,5\ ", "5"),
        (r"\begin{pmatrix} 1 \\ 200 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 200 \end{pmatrix}"),
        ("90°", r"90^\circ"),
        (r"90^{\circ}", r"90^\circ"),
        (r"90 ^ \circ", r"90^\circ"),
        (r"90\degree", r"90^\circ"),
        (r"\frac{90^\circ}{2}", r"\frac{90^\circ}{2}"),
        (r"f \circ g", r"f \circ g"),
        (r"30^\circ\text{C}", r"30^\circ"),
        (r"\dfrac12", r"\frac12"),
        (r"\left( 3, 4 \right)", "( 3, 4 )"),
        ("−5", "-5"),
        ("√13", r"\sqrt{13}"),
        ("1 4/5", r"1\frac{4}{5}"),
        ("15 %", r"15\%"),
        ("72.", "72"),
        ("72.0", "72.0"),
        ("0.333...", "0.333..."),
        ("", ""),
        ("$", ""),
    ],
)
def test_the_normal_spelling(text: str, normal: str) -> None:
    assert spelling.normal(text) == normal


@pytest.mark.parametrize(
    ("text", "bare", "without"),
    [
        (r"5 \text{ cm}", False, "5"),
        (r"864 \mbox{ inches}^2", False, "864"),
        (r"\frac{270}7\text{ degrees}", False, r"\frac{270}7"),
        (r"90^\circ \text{ east}", False, r"90^\circ"),
        (r"5 \text{ million}", False, r"5 \text{ million}"),
        (r"5 \text{ ft } 6 \text{ in}", False, r"5 \text{ ft } 6 \text{ in}"),
        (r"x=\text{none}", False, r"x=\text{none}"),
        (r"15 \text{ percent}", False, r"15\%"),
        ("5 cm", False, "5 cm"),
        ("5 cm", True, "5"),
        ("5cm^2", True, "5"),
        ("5 m", True, "5"),
        ("5m", True, "5m"),
        ("12 apples", True, "12"),
        ("12 square feet", True, "12"),
        ("60 miles/hour", True, "60"),
        ("15 percent", True, r"15\%"),
        ("5 million", True, "5 million"),
        ("2xy", True, "2xy"),
        ("2 xyz", True, "2 xyz"),
        ("2i", True, "2i"),
        ("cm", True, "cm"),
    ],
)
def test_units_are_words_after_a_number(text: str, bare: bool, without: str) -> None:
    assert spelling.without_units(text, bare=bare) == without


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"\text{Evelyn}", "evelyn"),
        ("Evelyn.", "evelyn"),
        (r"\text{(B)}", "b"),
        ("(B)", "b"),
        (r"\text{odd}", "odd"),
        ("odd", None),
        ("abc", None),
        ("5", None),
        (r"\pi", None),
        ("2516_8", None),
    ],
)
def test_words_are_text_or_four_letters(text: str, words: str | None) -> None:
    assert spelling.words(text) == words


def test_numbers_side_by_side_are_ambiguous() -> None:
    assert spelling.ambiguous("70 2")
    assert spelling.ambiguous("1.5 2")
    assert not any(spelling.ambiguous(text) for text in ("70", "70, 2", r"\log_2 8", r"\frac 5 9", r"1 \\ 2", "x^2 3"))


def test_an_index_after_digits_is_a_base() -> None:
    assert spelling.based("204_5") == spelling.based("204_{5}") == ("204", 5)
    assert spelling.based("1A_{16}") == ("1A", 16)
    assert spelling.based("A_1") is None
    assert spelling.based("x_1") is None
