"""A logger: records metrics somewhere. A failing logger never stops training, and a slow one never slows it.

``console`` and ``jsonl`` are called in the loop's thread. Every other logger is called in a thread of its own, one call
at a time and in order (:mod:`rl_core.training.logger_queue`): it may block. Calls that raise OSError (a server that
does not answer, a full disk) are made again until they succeed; those that raise another exception are lost.
"""

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


@dataclass(frozen=True)
class Span:
    """A phase of a step.

    Attributes:
        name: ``sampling``, ``algorithm``, … see :mod:`rl_core.training.phases`; the step itself is ``step``.
        start, end: seconds since 1970.
        parent: index of the span that contains it, in the same list; None for the step.
    """

    name: str
    start: float
    end: float
    parent: int | None


@runtime_checkable
class LogsTraces(Protocol):
    """Optional method of a logger that shows when the phases of a step ran."""

    def log_trace(self, step: int, spans: Sequence[Span]) -> None:
        """After a step: itself first, then its phases in the order in which they began."""
        ...


@runtime_checkable
class LogsMachines(Protocol):
    """Optional method of a logger that shows how busy the machines of a run are."""

    def log_machines(self, step: int, machines: Mapping[str, Mapping[str, float]]) -> None:
        """Host name → metric → value of every machine, now, during ``step`` (see rl-system-metrics)."""
        ...


@runtime_checkable
class Uploads(Protocol):
    """Optional members of a logger that sends to a server. It is closed after those that write files.

    Attributes:
        close_timeout_s: how long the end of a run waits for its calls and ``close()``; what is left then is lost.
    """

    close_timeout_s: float

    def ended(self, status: str) -> None:
        """Before ``close()``: the run is ``finished``, ``failed`` or ``interrupted``."""
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
