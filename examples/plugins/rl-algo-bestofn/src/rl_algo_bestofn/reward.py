"""A reward with partial credit, so that there is something to rank from the first step on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl_core.contracts.reward import Sample
from rl_core.errors import DataError

if TYPE_CHECKING:
    from rl_algo_bestofn.config import RepeatConfig


class Repeat:
    """1 for exactly ``length`` times the row's ``answer``, a single character; 1/length less for each mistake."""

    def __init__(self, config: RepeatConfig) -> None:
        self.config = config

    def score(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """One score per sample, and ``characters``, which becomes the metric ``rollout/repeat/characters``.

        Raises:
            DataError: a row has no ``answer`` of one character.
        """
        return [{"reward": self._score(sample), "characters": float(len(sample.completion))} for sample in samples]

    def _score(self, sample: Sample) -> float:
        answer = str(sample.row.get("answer", ""))
        if len(answer) != 1:
            raise DataError(f"{sample.row.get('__where__', 'a data row')}: 'answer' must be a single character")
        right = sample.completion[: self.config.length].count(answer)
        beyond = max(0, len(sample.completion) - self.config.length)
        return max(0, right - beyond) / self.config.length
