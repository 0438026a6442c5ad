"""All loggers of a run behind one. Whatever they do, training goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_secrets.redaction import mask_known

from rl_core.contracts.logger import Logger, LogsMachines, LogsTraces, RunInfo, ShowsActivity, Span, Uploads
from rl_core.discovery.lookup import published
from rl_core.errors import Interrupted
from rl_core.training.logger_queue import LoggerQueue
from rl_core.training.observers import StepObserver
from rl_core.training.phases import ALGORITHM, CHECKPOINT, EVALUATION, SAMPLING

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig
    from rl_core.discovery.registry import Registry

logger = logging.getLogger("rl")


ACTIVITIES: Mapping[str, str] = {
    SAMPLING: "sampling",
    ALGORITHM: "training",
    EVALUATION: "evaluating",
    CHECKPOINT: "saving a checkpoint",
}
"""What loggers show during a phase; nothing during others."""


DEFAULTS = ("console", "jsonl")
"""Loggers of every run, unless its config lists them with options of its own. They are called in the loop's thread."""

CLOSE_S = 30.0
"""How long the end of a run waits for loggers that write files."""


class LoggerGroup:
    """Fans out to every logger, or to the queue that a logger is behind; keeps the name of each for messages.

    A logger without a queue is dropped with a warning where it fails.
    """

    def __init__(self, loggers: Sequence[tuple[str, Logger | LoggerQueue]]) -> None:
        self._loggers = list(loggers)
        self._known: dict[tuple[int, type], bool] = {}

    def start(self, info: RunInfo) -> None:
        self._each(lambda one: one.start(info), start=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, with ``run/log_calls_lost`` where there are any."""
        lost = sum(one.lost for _, one in self._loggers if isinstance(one, LoggerQueue))
        logged = {**metrics, "run/log_calls_lost": float(lost)} if lost else dict(metrics)
        self._each(lambda one: one.log(step, logged))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            masked = [mask_known(row) for row in rows]
            self._each(lambda one: one.log_samples(step, masked))

    def log_trace(self, step: int, spans: Sequence[Span]) -> None:
        """To the loggers that show traces."""
        self._each(lambda one: one.log_trace(step, spans), only=LogsTraces)

    def log_machines(self, step: int, machines: Mapping[str, Mapping[str, float]]) -> None:
        """To the loggers that show machines; from any thread."""
        self._each(lambda one: one.log_machines(step, machines), only=LogsMachines)

    def wants(self, protocol: type) -> bool:
        """Whether any logger has these optional methods."""
        return any(self._supports(one, protocol) for _, one in self._loggers)

    def doing(self, what: str | None) -> None:
        """Tell the loggers that show activities what goes on, or (None) that what began last has ended."""
        self._each(lambda one: one.doing(what), only=ShowsActivity)

    def close(self, error: BaseException | None = None) -> None:
        """End all of them, at last those that upload, which take the others' files along; ``error`` ended the run."""
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        status = "finished" if error is None else "interrupted" if stopped else "failed"

        def end(one: Logger) -> None:
            if isinstance(one, Uploads):
                one.ended(status)
            one.close()

        queues = [one for _, one in self._loggers if isinstance(one, LoggerQueue)]
        self._loggers = [(name, one) for name, one in self._loggers if not isinstance(one, LoggerQueue)]
        self._each(end)
        for uploads in (False, True):
            now, closing = time.monotonic(), [one for one in queues if isinstance(one.logger, Uploads) == uploads]
            for one in closing:
                one.close(end)
            for one in closing:
                one.join(now + (one.logger.close_timeout_s if isinstance(one.logger, Uploads) else CLOSE_S))

    def _supports(self, one: Logger | LoggerQueue, protocol: type) -> bool:
        """Looked up once: the check takes longer than most calls of a logger."""
        key = id(one), protocol
        if key not in self._known:
            self._known[key] = isinstance(_inner(one), protocol)
        return self._known[key]

    def _each(self, call: Callable[[Any], None], *, only: type | None = None, start: bool = False) -> None:
        for name, one in list(self._loggers):
            if only is not None and not self._supports(one, only):
                continue
            if isinstance(one, LoggerQueue):
                one.put(call, start=start)
                continue
            try:
                call(one)
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                logger.warning("logger %r failed and is dropped: %s: %s", name, type(error).__name__, error)
                self._loggers.remove((name, one))


def _inner(one: Logger | LoggerQueue) -> Logger:
    return one.logger if isinstance(one, LoggerQueue) else one


class Activity(StepObserver):
    """Has the loggers show what a step is busy with."""

    def __init__(self, loggers: LoggerGroup) -> None:
        self._loggers = loggers

    def phase_begins(self, name: str) -> None:
        if name in ACTIVITIES:
            self._loggers.doing(ACTIVITIES[name])

    def phase_ends(self, name: str) -> None:
        if name in ACTIVITIES:
            self._loggers.doing(None)


def build_loggers(config: RunConfig, registry: Registry) -> LoggerGroup:
    """The configured loggers of all stages, and the default ones that are installed where they are not listed."""
    chosen: dict[str, tuple[str, Any]] = {}
    for stage in config.stages:
        for choice in stage.loggers:
            chosen.setdefault(repr(choice.config), (choice.name, choice))
    listed = {name for name, _ in chosen.values()}
    installed = {registered.component.name for registered in registry.components("logger")}
    if "console" not in listed | installed:
        package = published()["logger"]["console"]
        logger.warning("no progress is shown here (pip install %s); it is in metrics.jsonl", package)
    loggers: list[tuple[str, Logger | LoggerQueue]] = []
    for name in DEFAULTS:
        if name in installed and name not in listed:
            component = registry.find("logger", name).component
            built = registry.resolve(component.config)(name=name)
            loggers.append((name, registry.resolve(component.factory)(built)))
    for name, choice in chosen.values():
        built = registry.resolve(choice.component.factory)(choice.config)
        loggers.append((name, built if name in DEFAULTS else LoggerQueue(name, built)))
    return LoggerGroup(loggers)
