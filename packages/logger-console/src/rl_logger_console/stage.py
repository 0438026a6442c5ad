"""What both forms of the console show: the progress of a stage, and which metrics are worth a column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rl_core.contracts.logger import RunInfo


def duration(seconds: float) -> str:
    """``42 s``, ``3:07 min``, ``2:15 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


SHORT_S = 1.0
"""Activities that take less are not mentioned."""


EVERY_STEP = frozenset({"sampling", "training"})
"""Activities whose time is in every step's line."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else duration(value)


@dataclass(frozen=True)
class Column:
    """A metric shown in the console.

    Attributes:
        title: its heading.
        keys: metric names, of which the first present one is shown.
        text: formats its value.
    """

    title: str
    keys: tuple[str, ...]
    text: Callable[[float], str]

    def value(self, metrics: Mapping[str, float]) -> str:
        """The formatted value, or an empty string where the metric is absent."""
        return next((self.text(metrics[key]) for key in self.keys if key in metrics), "")


COLUMNS = (
    Column("loss", ("train/loss",), _number),
    Column("reward", ("rollout/reward_mean",), _number),
    Column("eval loss", ("eval/loss",), _number),
    Column("accuracy", ("eval/accuracy",), _percent),
    Column("grad norm", ("train/grad_norm",), _number),
    Column("tokens/s", ("train/tokens_per_second",), _count),
    Column("sampled/s", ("rollout/tokens_per_second",), _count),
    Column("time", ("time/step_s",), _seconds),
)
"""In the order they are shown."""


def is_evaluation(metrics: Mapping[str, float]) -> bool:
    """Whether these metrics contain a measurement on held-out data."""
    return any(name.startswith("eval/") for name in metrics)


class StageProgress:
    """How far a stage is and how long the rest will take.

    Args:
        clock: seconds, monotonic; the stage starts when this is built.
    """

    def __init__(self, info: RunInfo, clock: Callable[[], float]) -> None:
        self.info = info
        self.step = info.first_step - 1
        self._clock = clock
        self._started = self._last = self._since = clock()
        self._activity: str | None = None

    @property
    def total(self) -> int:
        return self.info.total_steps

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the mean pace of this process; None before its first step."""
        done = self.step - (self.info.first_step - 1)
        return (self._last - self._started) / done * (self.total - self.step) if done > 0 else None

    def advance(self, step: int) -> None:
        """``step`` is complete; step 0 is the evaluation before training."""
        self.step = max(step, self.step)
        self._last = self._clock()

    def begin(self, what: str | None) -> tuple[str | None, float]:
        """An activity begins, or (None) none is running; returns the one that ended, and its seconds."""
        ended, self._activity = self._activity, what
        took, self._since = self._clock() - self._since, self._clock()
        return ended, took

    @property
    def activity(self) -> str:
        """What has been going on for more than a second: ``evaluating 4 s``; else an empty string."""
        took = self._clock() - self._since
        return f"{self._activity} {duration(took)}" if self._activity and took > SHORT_S else ""

    @property
    def heading(self) -> str:
        """``sft``, with its place among several stages: ``sft (1 of 2)``."""
        stages = self.info.stages
        if len(stages) < 2:
            return self.info.stage
        return f"{self.info.stage} ({stages.index(self.info.stage) + 1} of {len(stages)})"
