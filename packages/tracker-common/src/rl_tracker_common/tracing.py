"""When the phases of a step ran, for loggers that show traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rl_core.contracts.logger import Span
from rl_core.training.observers import StepObserver

if TYPE_CHECKING:
    from rl_core.training.logger_group import LoggerGroup


class Trace(StepObserver):
    """Gives the loggers the spans of each step when it has ended; phases outside of steps are left out."""

    def __init__(self, loggers: LoggerGroup, now: Callable[[], float] = time.time) -> None:
        self._loggers = loggers
        self._now = now
        self._step = 0
        self._spans: list[Span] = []
        self._open: list[int] = []

    def step_begins(self, step: int) -> None:
        self._step, self._spans, self._open = step, [], []
        self._begin("step")

    def phase_begins(self, name: str) -> None:
        if self._open:
            self._begin(name)

    def phase_ends(self, name: str) -> None:
        if len(self._open) > 1:
            self._end()

    def step_ends(self, metrics: Mapping[str, float]) -> None:
        while self._open:
            self._end()
        self._loggers.log_trace(self._step, self._spans)

    def _begin(self, name: str) -> None:
        now = self._now()
        self._spans.append(Span(name, now, now, self._open[-1] if self._open else None))
        self._open.append(len(self._spans) - 1)

    def _end(self) -> None:
        index = self._open.pop()
        span = self._spans[index]
        self._spans[index] = Span(span.name, span.start, self._now(), span.parent)
