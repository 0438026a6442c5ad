"""What the algorithm makes of a step's batch; the next step may be asked for before the metrics of one are there."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_core.algorithm import can_begin
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import Scale
from rl_core.errors import RLError
from rl_core.model import NonFiniteBatch
from rl_core.training.phases import timed

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.training.assembly import Assembly
    from rl_core.training.phases import Phases

logger = logging.getLogger("rl")


@dataclass(frozen=True)
class Update:
    """A step that the algorithm is asked for, at the latest when somebody waits for it.

    Attributes:
        batch: what it trains on.
        drawn: metrics of making the batch.
        samples: rows for the sample log.
        asked: when it was asked for (``perf_counter``); None where it is only when somebody waits.
        wait: returns the algorithm's metrics.
    """

    step: int
    batch: SequenceBatch
    drawn: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    asked: float | None
    wait: Callable[[], Metrics]


class Updates:
    """Asks the algorithm of a stage for steps.

    Args:
        directory: of the run; a batch whose loss is not finite is saved in its ``failed/``.
        phases: where the time of each step goes.
        profiled: whether the phases of a step are measured one by one, so that no step can begin in another.
    """

    def __init__(self, parts: Assembly, directory: Path, *, phases: Phases, profiled: bool = False) -> None:
        self._stage = parts.stage.name
        self._algorithm: Algorithm = parts.driver.algorithm
        self._models: Mapping[str, Any] = parts.models
        if profiled:
            self._models = timed(parts.models, phases, policy=parts.policy.role.name)
        self._directory = directory
        self._phases = phases
        self._finished = 0.0
        self.can_begin = not profiled and can_begin(self._algorithm)

    def begin(
        self, step: int, batch: SequenceBatch, drawn: Mapping[str, float], samples: tuple[Mapping[str, Any], ...] = ()
    ) -> Update:
        """The update of ``step``; the algorithm is asked for it now if it can be asked without waiting."""
        wait = None
        if self.can_begin and len(batch):
            with self._phases.phase("algorithm"):
                wait = self._algorithm.begin(batch, self._models)
        if wait is not None:
            return Update(step, batch, drawn, samples, time.perf_counter(), wait)
        return Update(step, batch, drawn, samples, None, functools.partial(self._algorithm.step, batch, self._models))

    def finish(self, update: Update) -> dict[str, float]:
        """Wait for an update; its metrics.

        Raises:
            RLError: the loss was not finite, and the batch is saved; or whatever the algorithm raised.
        """
        step, batch = update.step, update.batch
        if not len(batch):
            logger.warning("%s: step %d has nothing to train on; the weights stay as they are", self._stage, step)
            return {"train/tokens": 0.0, "train/loss_tokens": 0.0, "train/sequences": 0.0, "time/train_s": 0.0}
        # What was asked for during another update has waited for that one.
        started = time.perf_counter() if update.asked is None else max(update.asked, self._finished)
        try:
            with self._phases.phase("algorithm"):
                metrics = update.wait()
        except NonFiniteBatch as error:
            path = save_batch(self._directory / "failed" / f"{self._stage}-step-{step:06d}.npz", error.batch)
            raise RLError(
                f"stage {self._stage!r}, step {step}: {error}\n"
                f"    the batch is saved for inspection in {path}\n"
                "    try a lower algorithm.learning_rate, or continue from the last checkpoint with `rl resume`"
            ) from error
        self._finished = time.perf_counter()
        took = self._finished - started
        return metrics | {
            "train/tokens": float(len(batch.tokens)),
            "train/loss_tokens": Scale.of(batch).tokens,
            "train/sequences": float(len(batch)),
            "train/tokens_per_second": len(batch.tokens) / max(took, 1e-9),
            "time/train_s": took,
        }


def save_batch(path: Path, batch: SequenceBatch) -> Path:
    """Write a batch as ``.npz`` (``tokens``, ``offsets``, ``token.NAME``, ``sequence.NAME``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"tokens": batch.tokens, "offsets": batch.offsets}
    arrays |= {f"token.{name}": column for name, column in batch.token_columns.items()}
    arrays |= {f"sequence.{name}": column for name, column in batch.sequence_columns.items()}
    np.savez(path, **arrays)
    return path
