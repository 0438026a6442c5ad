"""Where the wall time of steps goes, by phase; every moment of a step belongs to exactly one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.profiling import FORWARD_BACKWARD, OPTIMIZER
from rl_core.training.observers import Observers, StepObserver
from rl_core.training.phases import (
    ALGORITHM,
    CHECKPOINT,
    EVALUATION,
    LOGGING,
    REST,
    SAMPLING,
    TRAIN,
    TURNS,
    WEIGHTS,
)

if TYPE_CHECKING:
    from rl_core.model import Model

LABELS: Mapping[str, str] = {
    "data": "batches of examples",
    "rollout": "rollouts: generation",
    "environment": "rollouts: environment",
    "reward": "rollouts: rewards",
    "wait": "waiting for rollouts",
    SAMPLING: "rollouts, the rest",
    "old_logprobs": "old log-probs",
    "ref_logprobs": "reference log-probs",
    "forward": "other forward passes",
    FORWARD_BACKWARD: "forward and backward",
    OPTIMIZER: "optimizer",
    TRAIN: "training calls, the rest",
    ALGORITHM: "advantages, minibatches",
    WEIGHTS: "weight transfer",
    TURNS: "GPU handed over",
    EVALUATION: "evaluation",
    CHECKPOINT: "checkpoints",
    LOGGING: "loggers and hooks",
    REST: "rest",
}
"""Phases in the order of a step, as a reader sees them."""


class Phases(StepObserver):
    """A stopwatch with one hand: a phase that begins inside another stops the outer one until it ends.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._open: list[str] = []
        self._since = 0.0
        self._seconds: dict[str, float] = {}
        self._steps = 0

    def step_begins(self, step: int) -> None:
        """What is in no phase is the rest."""
        self.phase_begins(REST)

    def phase_begins(self, name: str) -> None:
        self._turn()
        self._open.append(name)

    def phase_ends(self, name: str) -> None:
        self._turn()
        self._open.pop()

    def step_ends(self, metrics: Mapping[str, float]) -> None:
        self.phase_ends(REST)
        self._steps += 1  # a step may end with a request to stop
        if SAMPLING in self._seconds:
            self.move(SAMPLING, sampling_parts(metrics))

    def move(self, source: str, parts: Mapping[str, float]) -> None:
        """Give ``parts`` of the time of ``source``, which somebody else measured, to phases of their own.

        Never more than there is: clocks differ.
        """
        for name, seconds in parts.items():
            moved = min(max(seconds, 0.0), self._seconds.get(source, 0.0))
            self._seconds[name] = self._seconds.get(name, 0.0) + moved
            self._seconds[source] = self._seconds.get(source, 0.0) - moved

    def take(self) -> tuple[int, dict[str, float]]:
        """Completed steps and the seconds of each phase, and start anew."""
        taken = self._steps, self._seconds
        self._steps, self._seconds = 0, {}
        return taken

    def _turn(self) -> None:
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def sampling_parts(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a step's metrics say about the time its batch took (``time/…``), by phase."""
    if "time/wait_s" in metrics:  # generating and scoring went on during the step before
        return {"wait": metrics["time/wait_s"]}
    environment = metrics.get("time/environment_s", 0.0)
    return {
        "data": metrics.get("time/data_s", 0.0),
        "rollout": metrics.get("time/rollout_s", 0.0) - environment,
        "environment": environment,
        "reward": metrics.get("time/reward_s", 0.0),
    }


class TimedModel:
    """A :class:`rl_core.model.Model` whose calls are phases: forward passes by role, training."""

    def __init__(self, model: Model, observers: Observers, *, forward: str) -> None:
        self._model, self._observers, self._forward = model, observers, forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(
        self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0
    ) -> dict[str, np.ndarray]:
        """As :meth:`rl_core.model.Model.forward`."""
        with self._observers.phase(self._forward):
            return self._model.forward(batch, outputs, temperature=temperature)

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        """As :meth:`rl_core.model.Model.train`."""
        with self._observers.phase(TRAIN):
            return self._model.train(batch, loss, scale=scale)


def timed(models: Mapping[str, Model], observers: Observers, *, policy: str) -> Mapping[str, Any]:
    """``models`` with their calls timed; ``policy`` is the role that is generated from."""
    names = {policy: "old_logprobs", "reference": "ref_logprobs"}
    return {role: TimedModel(model, observers, forward=names.get(role, "forward")) for role, model in models.items()}
