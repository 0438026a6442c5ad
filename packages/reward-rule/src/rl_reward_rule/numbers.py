"""The number a text ends in, as an exact fraction. What could be read in two ways is no number.

``1,234`` is one thousand, ``1,00,000`` (grouped as in India) is one hundred thousand, and ``1,0000``, ``1.234,5``,
``12:30``, ``2024-01-05``, ``10²`` and ``2^10`` are none: taking their last digits would reward a wrong answer.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

MAX_CHARACTERS = 4000
"""Longer numbers count as none."""
MAX_EXPONENT = 308
"""Powers of ten beyond this count as none."""

_CHARACTERS = str.maketrans(
    # Hyphens, dashes and minus signs; what East Asian keyboards write; Arabic separators; the fraction slash.
    dict.fromkeys("‐‑‒–—−﹘﹣－", "-")
    | dict(zip("，．／％＄＋：＾，٫٬\u2044\u2019", ",./%$+:^,.,/'", strict=True))
    | dict.fromkeys("\u2007\u2009\u202f", "\xa0")
    | dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff")
)
_DIGITS = r"(?:\d+(?:[.,'_]\d+)*|(?<![\w.,])\.\d+)"
_ODD = "²³¹⁰-⁹₀-₉¼-¾⅐-⅞"
"""Digits that stand above or below the line, and fractions in one character."""
_NUMBER = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2}(?!\d))"
    # A minus is a sign only where it cannot be a subtraction or a hyphen.
    rf"|(?P<before>\^\s?\{{?\s?|±\s?|[{_ODD}])?(?P<sign>(?<![\w.)\]])[-+])?(?:[$€£¥₹](?P<sign2>-)?)?"
    rf"(?:(?P<whole>\d+)[ \u00a0](?=\d+\s?/\s?\d))?(?P<number>{_DIGITS})(?P<exponent>[eE][-+]?\d+)?"
    rf"(?:\s?/\s?(?P<denominator>{_DIGITS}))?"
    rf"(?P<after>[{_ODD}]|[/:]\d[\d/:.,]*|(?:\s?\^\s?\{{?|\*\*|\s\*\*\s)[-+]?\d[\d.,]*|\s?\^)?"
)
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_GROUPED = re.compile(
    r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?|[1-9]\d{0,2}(?:(?:'\d{3})+|(?:_\d{3})+)(?:\.\d+)?"
)
_SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?P<rest>(?:[ \u00a0]\d{3})+)(?![\d,])")


def last_number(text: str) -> Fraction | None:
    """The last number in ``text``, or None.

    Understands ``1,234``, ``1,00,000``, ``1'234``, ``1 000``, ``$5``, ``-$5``, ``50%`` (as 50), ``72.``, ``.5``,
    ``1e-3``, fractions ``3/4`` and ``1 1/2``, minus signs and dashes in front of a number, and the digits of other
    scripts. None where the last number is ambiguous, is divided by zero or has thousands of digits.
    """
    last = None
    for match in _NUMBER.finditer(_without_spaces(_in_ascii(text))):
        last = match
    return None if last is None else _value(last)


def exact_number(value: Any) -> Fraction | None:
    """A number of Python, numpy or ``decimal`` as what its decimal digits say; None for anything else."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    if isinstance(value, Integral):
        return Fraction(int(value))
    if isinstance(value, Fraction):
        return value
    if isinstance(value, Real):
        value = Decimal(repr(float(value)))
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= MAX_CHARACTERS:
        return Fraction(value)
    return None


def _in_ascii(text: str) -> str:
    if text.isascii():
        return text
    return re.sub(r"[^\W\d_]|(?![0-9])\d", _ascii_digit, text.translate(_CHARACTERS))


def _ascii_digit(match: re.Match[str]) -> str:
    digit = unicodedata.decimal(match[0], None)
    return match[0] if digit is None else str(digit)


def _without_spaces(text: str) -> str:
    """Without the spaces between groups of three digits.

    A plain space may also separate two numbers: it groups where the text is nothing but this number, and where a
    group begins with 0, as no number does.
    """
    stripped = text.strip()

    def joined(match: re.Match[str]) -> str:
        rest = match["rest"]
        if "\u00a0" in rest or " 0" in rest or len(match[0]) == len(stripped):
            return re.sub(r"[ \u00a0]", "", match[0])
        return match[0]

    return _SPACED.sub(joined, text)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["date"] or match["before"] or match["after"] or len(match[0]) > MAX_CHARACTERS:
        return None
    value = _fraction(match["number"], match["exponent"])
    if value is not None and match["denominator"] is not None:
        denominator = _fraction(match["denominator"], None)
        value = value / denominator if denominator else None
        if value is not None and match["whole"] is not None and value < 1:
            value += int(match["whole"])
    if value is None:
        return None
    return -value if "-" in (match["sign"], match["sign2"]) else value


def _fraction(digits: str, exponent: str | None) -> Fraction | None:
    if _GROUPED.fullmatch(digits):
        digits = re.sub("[,'_]", "", digits)
    if not _PLAIN.fullmatch(digits) or (exponent and abs(int(exponent[1:])) > MAX_EXPONENT):
        return None
    return Fraction(Decimal(digits + (exponent or "")))
