"""Which checkpoints stay when a new one is complete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Best:
    """Keep the ``count`` checkpoints with the highest (``max``) or lowest (``min``) value of a metric."""

    metric: str
    mode: Literal["max", "min"] = "max"
    count: int = 1

    def steps(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """The best steps, best first; of equal ones the earlier. Steps without a finite value have no rank."""
        sign = -1.0 if self.mode == "max" else 1.0
        values = {step: found[self.metric] for step, found in metrics.items() if _finite(found.get(self.metric))}
        return sorted(values, key=lambda step: (sign * values[step], step))[: self.count]


@dataclass(frozen=True)
class Retention:
    """The newest ``last``, every step that ``every`` divides, and the best."""

    last: int = 2
    every: int | None = None
    best: Best | None = None

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Steps to keep, of those there are.

        Args:
            metrics: step → its metrics, for every checkpoint.
        """
        kept = set(sorted(metrics)[-self.last :])
        if self.every is not None:
            kept |= {step for step in metrics if step % self.every == 0}
        if self.best is not None:
            kept |= set(self.best.steps(metrics))
        return kept


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
