"""A logger: records metrics somewhere. A failing logger never stops training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class RunInfo:
    """Facts about a stage, for :meth:`Logger.start`.

    Attributes:
        run: the run's name.
        directory: the run directory.
        stage: name of the stage (``train`` where there are no stages).
        stages: names of all stages, in order.
        total_steps: steps in this stage.
        first_step: the first step that will be logged (more than 1 after a resume or a recovery).
        config: the stage's resolved config as plain data.
    """

    run: str
    directory: str
    stage: str
    stages: tuple[str, ...]
    total_steps: int
    first_step: int
    config: Mapping[str, Any]


@runtime_checkable
class ShowsActivity(Protocol):
    """Optional methods of a logger that shows the current activity."""

    def doing(self, what: str | None) -> None:
        """An activity (``evaluating``, ``saving a checkpoint``, …) begins; None: the last one has ended."""
        ...


class Logger(Protocol):
    """Built once per run as ``factory(config)`` in the driver."""

    def start(self, info: RunInfo) -> None:
        """A stage begins, or continues after a resume; files are appended to, never truncated.

        After a failure of workers a stage is started again in the same process, from ``first_step``; the steps from
        there on are logged a second time.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step of the current stage; steps count from 1, evaluation before training is step 0."""
        ...

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A few generated samples as plain rows."""
        ...

    def close(self) -> None:
        """The run ended, with or without success."""
        ...
