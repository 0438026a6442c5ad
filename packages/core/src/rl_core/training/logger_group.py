"""All loggers of a run behind one: a failing logger is dropped with a warning, training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_secrets.redaction import mask_known

from rl_core.contracts.logger import Logger, RunInfo, ShowsActivity
from rl_core.discovery.lookup import published
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
"""Loggers of every run, unless its config lists them with options of its own."""


class LoggerGroup:
    """Fans out to every logger; keeps the name of each for messages."""

    def __init__(self, loggers: Sequence[tuple[str, Logger]]) -> None:
        self._loggers = list(loggers)

    def start(self, info: RunInfo) -> None:
        self._each(lambda one: one.start(info))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._each(lambda one: one.log(step, metrics))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            masked = [mask_known(row) for row in rows]
            self._each(lambda one: one.log_samples(step, masked))

    def doing(self, what: str | None) -> None:
        """Tell the loggers that show activities what goes on, or (None) that what began last has ended."""
        self._each(lambda one: one.doing(what) if isinstance(one, ShowsActivity) else None)

    def close(self) -> None:
        self._each(lambda one: one.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, one in list(self._loggers):
            try:
                call(one)
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                logger.warning("logger %r failed and is dropped: %s: %s", name, type(error).__name__, error)
                self._loggers.remove((name, one))


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
    loggers = []
    for name in DEFAULTS:
        if name in installed and name not in listed:
            component = registry.find("logger", name).component
            built = registry.resolve(component.config)(name=name)
            loggers.append((name, registry.resolve(component.factory)(built)))
    for name, choice in chosen.values():
        loggers.append((name, registry.resolve(choice.component.factory)(choice.config)))
    return LoggerGroup(loggers)
