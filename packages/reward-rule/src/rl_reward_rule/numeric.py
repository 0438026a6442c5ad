"""Equality of numbers, however they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from rl_core.contracts.reward import Sample
from rl_core.errors import DataError

from rl_reward_rule.answers import answer_of, extract, place_of
from rl_reward_rule.config import NumericConfig

_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    # A minus is a sign only where it cannot be a subtraction or a hyphen.
    rf"(?P<sign>(?<![\w.)\]])[-+])?(?:\$(?P<sign2>-)?)?(?P<number>{_UNSIGNED})(?P<exponent>[eE][-+]?\d+)?"
    rf"(?:\s?/\s?(?P<denominator>{_UNSIGNED}))?"
)


class Numeric:
    """1.0 where the completion's last number is within ``tolerance`` of the answer, else 0.0."""

    def __init__(self, config: NumericConfig) -> None:
        self.config = config
        self._extract = re.compile(config.extract) if config.extract else None

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score per sample; a ``DataError`` names a row whose answer is missing or has no number."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        expected = self._expected(sample)
        text = extract(self._extract, sample.completion)
        found = last_number(text) if text is not None else None
        return float(found is not None and abs(found - expected) <= self.config.tolerance)

    def _expected(self, sample: Sample) -> float:
        answer: Any = answer_of(sample, self.config.answer, self.config.name)
        number = last_number(answer) if isinstance(answer, str) else _as_float(answer)
        if number is None:
            raise DataError(
                f"{place_of(sample)}: there is no number in the answer {answer!r}, "
                f"which reward {self.config.name!r} compares with\n"
                "    use reward exact_match for answers that are words, or leave the row out"
            )
        return number


def last_number(text: str) -> float | None:
    """The last number in ``text``, or None.

    Understands ``1,234``, ``$5``, ``-$5``, ``50%`` (as 50), ``72.``, ``.5``, ``1e-3``, ``−3`` and
    fractions ``3/4``. Numbers that overflow and divisions by zero count as none.
    """
    last = None
    for match in _NUMBER.finditer(text.replace("\u2212", "-")):
        last = match
    return None if last is None else _value(last)


def _value(match: re.Match[str]) -> float | None:
    value = float(match["number"].replace(",", "") + (match["exponent"] or ""))
    if match["denominator"] is not None:
        denominator = float(match["denominator"].replace(",", ""))
        if denominator == 0:
            return None
        value /= denominator
    if "-" in (match["sign"], match["sign2"]):
        value = -value
    return value if math.isfinite(value) else None


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
