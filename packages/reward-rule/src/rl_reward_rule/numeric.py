"""Equality of numbers, however they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rl_core.contracts.reward import Sample
from rl_core.errors import DataError

from rl_reward_rule.answers import answer_of, extract, place_of
from rl_reward_rule.config import NumericConfig
from rl_reward_rule.numbers import exact_number, last_number


class Numeric:
    """1.0 where the completion's last number is within ``tolerance`` of the answer, else 0.0."""

    def __init__(self, config: NumericConfig) -> None:
        self.config = config
        self._extract = re.compile(config.extract) if config.extract else None
        self._tolerance = Fraction(repr(config.tolerance))  # what its decimal digits say

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score per sample; a ``DataError`` names a row whose answer is missing or has no number."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        expected = self._expected(sample)
        text = extract(self._extract, sample.completion)
        found = last_number(text) if text is not None else None
        return float(found is not None and abs(found - expected) <= self._tolerance)

    def _expected(self, sample: Sample) -> Fraction:
        answer: Any = answer_of(sample, self.config.answer, self.config.name)
        number = last_number(answer) if isinstance(answer, str) else exact_number(answer)
        if number is None:
            raise DataError(
                f"{place_of(sample)}: there is no number in the answer {answer!r}, "
                f"which reward {self.config.name!r} compares with\n"
                "    use reward exact_match for answers that are words, or leave the row out"
            )
        return number
