"""Reading metrics.jsonl back, stage by stage."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_log = logging.getLogger(__name__)


@dataclass
class StageHistory:
    """Metrics of one stage.

    Attributes:
        name: the stage's name.
        series: metric → ``{step: value}``, with ``nan`` where the value was not finite.
    """

    name: str
    series: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The last step there is."""
        return max((step for values in self.series.values() for step in values), default=0)

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps (int64 [n], ascending) and values (float64 [n]); empty if the metric is absent."""
        points = sorted(self.series.get(metric, {}).items())
        return np.array([step for step, _ in points], np.int64), np.array([value for _, value in points], np.float64)


def read_history(path: Path) -> list[StageHistory]:
    """The stages of a run in the order they ran; empty where the file is missing.

    A step that was logged twice (the run was resumed) counts as it was logged last; a line that a
    crash cut short is left out.
    """
    stages: dict[str, StageHistory] = {}
    if not path.exists():
        return []
    broken = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
                step, name = int(row.pop("step")), str(row.pop("stage"))
            except (ValueError, KeyError, TypeError, AttributeError):
                broken += 1
                continue
            stage = stages.setdefault(name, StageHistory(name))
            for metric, value in row.items():
                stage.series.setdefault(metric, {})[step] = float("nan") if value is None else float(value)
    if broken:
        _log.warning("%s: %d line(s) are not metrics and were left out", path, broken)
    return list(stages.values())
