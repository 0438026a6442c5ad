"""What a run does about failed workers: starts again from the newest checkpoint, as often as the config allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rl_core.errors import WorkerDied
from rl_core.training.observers import StepObserver

if TYPE_CHECKING:
    from rl_core.config.stage import ComponentChoice, StageConfig

logger = logging.getLogger("rl")


class Recovery(StepObserver):
    """The failures of a run; with the metrics of a step how many there were (``run/failures``), and at the first step
    after one what it took to get there (``time/recovery_s``).

    Args:
        limit: how many are recovered from; None: any number.

    Attributes:
        failures: how many there were.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.failures = 0
        self._failed_at: float | None = None  # when the last one was noticed (monotonic seconds), until a step begins
        self._metrics: dict[str, float] = {}

    def absorb(self, death: WorkerDied, stage: StageConfig, *, saved: int | None) -> None:
        """Count a failure; returns if the run is to go on.

        Args:
            saved: the step of the newest checkpoint, or None.

        Raises:
            WorkerDied: there were more than ``limit``; says why and what to change.
        """
        self.failures += 1
        self._failed_at = time.monotonic()
        advice = _advice(death, stage)
        if self.limit is not None and self.failures > self.limit:
            text = (
                f"{death}\n    {_count(self.failures)}, and run.max_failures is {self.limit}: the run stops{advice}\n"
                "    `rl resume` continues from the last checkpoint"
            )
            raise WorkerDied(text, worker=death.worker, role=death.role, cause=death.cause) from death
        allowed = "" if self.limit is None else f" of {self.limit} that are recovered from"
        logger.warning("failure %d%s: %s%s", self.failures, allowed, death, advice)
        beginning = f"at the beginning of stage {stage.name!r} (it has no checkpoint yet)"
        where = f"after step {saved}" if saved else beginning
        what = "Ray and all workers" if death.cause == "ray" else "all workers"
        logger.warning("starting %s again, and continuing %s", what, where)

    def step_begins(self, step: int) -> None:
        self._metrics = {"run/failures": float(self.failures)} if self.failures else {}
        if self._failed_at is not None:
            self._metrics["time/recovery_s"] = time.monotonic() - self._failed_at
            self._failed_at = None

    def metrics(self) -> Mapping[str, float]:
        return self._metrics

    def step_ends(self, metrics: Mapping[str, float]) -> None:
        self._metrics = {}


def _count(failures: int) -> str:
    return "this was the first failure" if failures == 1 else f"there were {failures} failures"


def _advice(death: WorkerDied, stage: StageConfig) -> str:
    """Which settings to lower where memory ran out."""
    if death.cause not in ("memory", "device_memory"):
        return ""
    settings = []
    if death.role in ("train", ""):
        settings += _settings("backend", stage.backend)
    if death.role in ("generate", "") and stage.generator is not None:
        settings += _settings("generator", stage.generator)
    if death.cause == "memory" and stage.generator is not None and stage.generator.config.replica_range[1] > 1:
        settings.append("generator.replicas")
    kind = "the device's memory was not enough" if death.cause == "device_memory" else "memory was not enough"
    return f"\n    {kind}: lower {', '.join([*settings, f'model.max_length (now {stage.model.max_length})'])}"


def _settings(section: str, choice: ComponentChoice) -> list[str]:
    named = []
    for name in choice.config.memory_settings:
        value = getattr(choice.config, name)
        named.append(f"{section}.{name}" + (f" (now {value})" if value is not None else " (not set)"))
    return named
