"""Equality with the row's answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rl_core.contracts.reward import Sample

from rl_reward_rule.answers import extract, text_of
from rl_reward_rule.config import ExactMatchConfig


class ExactMatch:
    """1.0 where the completion (or what ``extract`` finds in it) equals the answer, else 0.0."""

    def __init__(self, config: ExactMatchConfig) -> None:
        self.config = config
        self._extract = re.compile(config.extract) if config.extract else None

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score per sample; a ``DataError`` names a row without an answer that has one text."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        expected = self._normal(text_of(sample, self.config.answer, self.config.name))
        found = extract(self._extract, sample.completion)
        return float(found is not None and self._normal(found) == expected)

    def _normal(self, text: str) -> str:
        text = text.strip() if self.config.strip else text
        return text.casefold() if self.config.ignore_case else text
