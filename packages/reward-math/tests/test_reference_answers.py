"""Reference answers of MATH-500 and GSM8K: equal to themselves however they are spelled, unequal to neighbours.

``RL_DATASETS`` names a folder with ``math500/test.jsonl`` and ``gsm8k/train.jsonl`` (the published
files); without it rows of the same form are used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from rl_core.contracts.reward import Sample
from rl_reward_math.config import MathConfig
from rl_reward_math.reward import Math

MATH = (
    *("9", "-3", "58,500", r"10,\!080", r"11,\! 111,\! 111,\! 100", r"\$32,\!348", "1.25", ".0000672", "326.5", "0"),
    *(r"\frac{14}{3}", r"-\frac{35}{9}", r"\dfrac{17}{50}", r"\frac 34", r"\frac9{19}", r"\frac{1}{8}"),
    *(r"1\frac{4}{5}", r"\frac{20000}{\pi}", r"\pi", r"3\sqrt{13}", r"11\sqrt2", r"11 \sqrt{5} + 11"),
    *(r"\frac{\sqrt{21}}{5}", r"1 \pm \sqrt{19}", "-2 + 7i", "1+274i", "2k+2", "p - q", "6r^2-4r-24", "x=5"),
    *("x^5 - x^4 + x^3 - x^2 + x - 1", "(a+5)(b+2)", "5x - 7y + 11z + 4 = 0", r"\cot x", r"\frac{11+9a}{20}"),
    *("(-2,1)", "(8,-2)", "(6,31,-1)", "(1,-16,-4,43)", r"\left( 3, \frac{\pi}{2} \right)", "1,-2", "3, 5, 7"),
    *("(3,4]", r"(-\infty, 0]", r"(0,9) \cup (9,36)", r"x \in [-2,7]", r"\left(\frac{3}{5},\frac{8}{3}\right]"),
    *(r"90^\circ", r"5.4 \text{ cents}", r"864 \mbox{ inches}^2", r"\frac{270}7\text{ degrees}", "2516_8", "4210_{5}"),
    *(r"\text{Evelyn}", r"\text{(B)}", r"\text{even}", r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}"),
    r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
)
GSM8K = tuple(
    f"He makes 7*{number} = <<7*{number}>> and so on.\n#### {number}"
    for number in ("72", "10", "5", "1,600", "2,125", "-3", "0", "12000", "1,000,000", "0.25")
)
GSM8K_SAMPLE = 400


@pytest.fixture(scope="module")
def reward() -> Iterator[Callable[[], Math]]:
    """One for all of these tests: its workers take longer to start than many of them."""
    built = Math(MathConfig(name="math", timeout_s=60.0))
    yield lambda: built
    built.close()


def math_answers() -> list[str]:
    folder = os.environ.get("RL_DATASETS")
    return _column(Path(folder, "math500", "test.jsonl")) if folder else list(MATH)


def gsm8k_answers() -> list[str]:
    folder = os.environ.get("RL_DATASETS")
    if not folder:
        return list(GSM8K)
    answers = _column(Path(folder, "gsm8k", "train.jsonl"))
    return answers[:: len(answers) // GSM8K_SAMPLE]


def _column(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["answer"] for line in file]


def wrapped(text: str) -> Iterator[tuple[str, str]]:
    """Ways to write anything."""
    yield "as it is", text
    yield "dollars", f"${text}$"
    yield "parentheses", rf"\({text}\)"
    yield "trailing period", f"{text}."
    yield "period after dollars", f"${text}$."
    yield "spaces", rf"\,{text}\ "
    yield "bold", f"**{text}**"


def respelled(text: str) -> Iterator[tuple[str, str]]:
    """``(kind, another spelling of the same answer)``."""
    yield from wrapped(text)
    changes = (
        ("dfrac", r"\\frac", r"\\dfrac"),
        ("tfrac", r"\\[d]?frac", r"\\tfrac"),
        ("a/b", r"^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3"),
        ("fraction in braces", r"\\frac ?(\d)(\d)$", r"\\frac{\1}{\2}"),
        ("spaced comma", r"(?<!\d),(?!\\!)|,(?=-|\\)(?!\\!)", r",\\ "),
        ("spaced operators", r" ([+=]|\\pm|\\cup) ", r"\\,\1\\;"),
        ("left and right", r"^\((.*)([)\]])$", r"\\left(\1\\right\2"),
        ("no left and right", r"\\left|\\right", ""),
        ("degree sign", r"\^\\circ$", "°"),
        ("degree in braces", r"\^\\circ$", r"^{\\circ}"),
        ("degrees in words", r"\^\\circ$", " degrees"),
        ("degrees in text", r"\^\\circ$", r"\\text{ degrees}"),
        ("no degrees", r"\^\\circ$", ""),
        ("no unit", r"(?<=[\d}])\s*\\(?:text|mbox)\{ ?[a-z]+\}(\^2)?$", ""),
        ("unit in mathrm", r"(?<=[\d}])( ?)\\(?:text|mbox)\{", r"\1\\mathrm{"),
        ("no text", r"^\\text\{(.*)\}$", r"\1"),
        ("bold text", r"^\\text\{", r"\\textbf{"),
        ("brackets", r"pmatrix", "bmatrix"),
        ("base in braces", r"^(\d+)_(\d)$", r"\1_{\2}"),
        ("minus sign", "-", "−"),
        ("pi", r"\\pi", "π"),
        ("infinity", r"\\infty", "∞"),
        ("without the name", r"^x ?(?:=|\\in) ?", ""),
        ("with a name", r"^(-?(?:\d+|\\frac\{\d+\}\{\d+\}))$", r"x = \1"),
        ("no currency", r"\\\$", ""),
    )
    for kind, pattern, replacement in changes:
        if re.search(pattern, text) and re.sub(pattern, replacement, text) not in ("", text):
            yield kind, re.sub(pattern, replacement, text)
    yield from numbers_respelled(text)


def numbers_respelled(text: str) -> Iterator[tuple[str, str]]:
    plain = re.sub(r"\\!\s*|,|\\\$", "", text)
    if re.fullmatch(r"-?\d+(?:,(?:\\! ?)?\d{3})*|\\\$[\d,\\!]+", text):
        value = int(plain)
        for kind, separator in (("commas", ","), ("braced commas", "{,}"), ("thin spaces", r"\,"), ("spaces", " ")):
            yield f"thousands: {kind}", f"{value:,}".replace(",", separator)
        yield "no thousands separator", str(value)
        yield "decimal point", f"{value}.0"
        yield "currency", rf"\${value}"
        for unit in (r"\text{ cm}", r" \text{ cm}^2", r"\,\mathrm{kg}", r"\mbox{ in}", " apples", " square feet"):
            yield f"unit {unit!r}", f"{value}{unit}"
    fraction = re.fullmatch(r"(-?)\\d?frac\s*(?:\{(\d+)\}|(\d))\{?(\d+)\}?", text)
    if fraction:
        value = Fraction(int(fraction[2] or fraction[3]), int(fraction[4]))
        if set(prime_factors(value.denominator)) <= {2, 5}:
            yield "decimal", f"{fraction[1]}{decimal(value)}"
        yield "not reduced", rf"{fraction[1]}\frac{{{value.numerator * 7}}}{{{value.denominator * 7}}}"
    if re.fullmatch(r"-?\d*\.\d+", text):
        value = Fraction(text)
        yield "fraction", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        yield "trailing zero", f"{text}0"


def perturbed(text: str) -> Iterator[tuple[str, str]]:
    """``(kind, another answer that is wrong)``."""
    plain = re.sub(r"\\!\s*|(?<=\d),(?=\d{3})", "", text)
    numbers = list(re.finditer(r"\d+", plain))
    for which, number in (("first", numbers[0]), ("last", numbers[-1])) if numbers else ():
        more = str(int(number[0]) + 1).zfill(len(number[0]))
        # The 2 of inches^2 belongs to the unit.
        if "mbox" not in text or which == "first":
            yield f"{which} number + 1", plain[: number.start()] + more + plain[number.end() :]
    if re.fullmatch(r"\\\$\d+|-?\d+", plain) and plain != "0":
        value = int(plain.removeprefix(r"\$"))
        yield "sign", str(-value)
        yield "ten times", f"{value}0"
        yield "half more", f"{value}.5"
        yield "digits apart", f"{plain[:-1]} {plain[-1]}" if len(plain.strip("-$\\")) > 1 else f"{plain} 1"
        yield "a variable", f"{plain}x"
        yield "millions", f"{plain} million"
    if re.fullmatch(r"[^,=\[\]&]*[\d)}ix]", plain) and "text" not in text and "mbox" not in text and "_" not in text:
        if plain != "0":
            yield "negated", f"-({plain})"
        if r"\pm" not in plain:
            yield "one more", f"{plain}+1"
    parts = re.fullmatch(r"(?:\\left)?\(([^()\[\]]*),([^,()\[\]]*?)(?:\\right)?\)", plain)
    if parts and parts[1].strip() != parts[2].strip():
        yield "swapped", f"({parts[2]},{parts[1]})"
    # Infinity belongs to no interval, so how its end is written says nothing.
    if re.search(r"[(\[].*,.*(?<!infty)[)\]]$", plain) and ("]" in plain or "infty" in plain or "cup" in plain):
        yield "other end", plain[:-1] + {")": "]", "]": ")"}[plain[-1]]
    if "matrix" in text:
        yield "rows swapped", re.sub(r"(\S.*?) \\\\ (.*) \\end", r"\2 \\\\ \1 \\end", plain.replace("} ", "}   ", 1))
    if re.fullmatch(r"\\text\{\w+\}", text):
        yield "another word", r"\text{Nobody}"
        yield "letters swapped", rf"\text{{{text[7]}{text[6]}{text[8:-1]}}}"
    if re.fullmatch(r"\\text\{\([A-Z]\)\}", text):
        yield "another option", rf"\text{{({chr(ord(text[7]) + 1)})}}"


def prime_factors(number: int) -> Iterator[int]:
    factor = 2
    while number > 1:
        while number % factor == 0:
            yield factor
            number //= factor
        factor += 1


def decimal(value: Fraction) -> str:
    digits = 0
    while (value * 10**digits).denominator > 1:
        digits += 1
    return f"{float(value):.{digits}f}"


def verdicts(reward: Callable, cases: list[tuple[str, str, str]]) -> list[dict[str, float]]:
    return reward().score(
        [Sample(row={"answer": gold, "__where__": "row:1"}, prompt="", completion=text) for gold, _, text in cases]
    )


def failures(reward: Callable, cases: list[tuple[str, str, str]], *, expected: float) -> list[tuple[str, str, str]]:
    scores = verdicts(reward, cases)
    assert sum(score["timeout"] + score["crashed"] for score in scores) == 0
    wrong = [case for case, score in zip(cases, scores, strict=True) if score["reward"] != expected]
    return [(kind, gold[-60:], text[-60:]) for gold, kind, text in wrong]


def gsm8k_number(answer: str) -> str:
    return answer.rpartition("####")[2].strip()


def test_math_answers_equal_themselves_in_every_spelling(reward: Callable) -> None:
    cases = [(gold, kind, rf"So \boxed{{{text}}}") for gold in math_answers() for kind, text in respelled(gold)]
    assert len(cases) > 8 * len(math_answers())
    assert failures(reward, cases, expected=1.0) == []


def test_math_answers_do_not_equal_their_neighbours(reward: Callable) -> None:
    cases = [(gold, kind, rf"So \boxed{{{text}}}") for gold in math_answers() for kind, text in perturbed(gold)]
    assert len(cases) > 2 * len(math_answers())
    assert failures(reward, cases, expected=0.0) == []


@pytest.mark.parametrize("form", [r"So \boxed{%s}", "so\n#### %s"])
def test_gsm8k_answers_equal_themselves_in_every_spelling(reward: Callable, form: str) -> None:
    answers = gsm8k_answers()
    cases = [(gold, kind, form % text) for gold in answers for kind, text in respelled(gsm8k_number(gold))]
    assert len(cases) > 15 * len(answers)
    assert failures(reward, cases, expected=1.0) == []


def test_gsm8k_answers_do_not_equal_their_neighbours(reward: Callable) -> None:
    answers = gsm8k_answers()
    cases = [(gold, kind, f"so\n#### {text}") for gold in answers for kind, text in perturbed(gsm8k_number(gold))]
    assert len(cases) > 4 * len(answers)
    assert failures(reward, cases, expected=0.0) == []


def test_gsm8k_rationales_score_as_completions(reward: Callable) -> None:
    answers = gsm8k_answers()
    assert failures(reward, [(gold, "itself", gold) for gold in answers], expected=1.0) == []


def test_answers_without_a_marker_are_found(reward: Callable) -> None:
    cases = [(gold, "sentence", f"We see $1+1=2$. The answer is ${gold}$.") for gold in math_answers()]
    cases += [(gold, "sentence", f"So the answer is {gsm8k_number(gold)}.") for gold in gsm8k_answers()]
    assert failures(reward, cases, expected=1.0) == []
