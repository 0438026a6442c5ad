"""A pattern the completion has to match, for instance a format."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rl_core.contracts.reward import Sample

from rl_reward_rule.config import RegexConfig


class Regex:
    """1.0 where the completion matches the pattern, else 0.0."""

    def __init__(self, config: RegexConfig) -> None:
        pattern = re.compile(config.pattern, re.DOTALL | (re.IGNORECASE if config.ignore_case else 0))
        self._match = pattern.search if config.match == "search" else pattern.fullmatch

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score per sample."""
        return [float(self._match(sample.completion) is not None) for sample in samples]
