"""The phases of a step, and the times of two of them that every step logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import ClassVar

from rl_core.training.observers import StepObserver

REST = "rest"
SAMPLING = "sampling"
ALGORITHM = "algorithm"
WEIGHTS = "weights"
EVALUATION = "evaluation"
CHECKPOINT = "checkpoint"
LOGGING = "logging"
TURNS = "turns"
TRAIN = "train"


class StepTimes(StepObserver):
    """``time/weights_s`` and ``time/eval_s``, where there were any, and ``time/step_s`` until the step is logged."""

    _NAMES: ClassVar = {WEIGHTS: "time/weights_s", EVALUATION: "time/eval_s"}

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._step: float | None = None
        self._begun: dict[str, float] = {}
        self._times: dict[str, float] = {}

    def step_begins(self, step: int) -> None:
        self._step, self._times = self._now(), {}

    def phase_begins(self, name: str) -> None:
        self._begun[name] = self._now()

    def phase_ends(self, name: str) -> None:
        if name in self._NAMES:
            self._times[self._NAMES[name]] = self._now() - self._begun[name]

    def metrics(self) -> Mapping[str, float]:
        return self._times if self._step is None else self._times | {"time/step_s": self._now() - self._step}

    def step_ends(self, metrics: Mapping[str, float]) -> None:
        self._step = None
