"""Progress in the terminal: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rl_core.contracts.logger import RunInfo

from rl_logger_console.live import LiveView
from rl_logger_console.plain import PlainView
from rl_logger_console.stage import StageProgress

if TYPE_CHECKING:
    from rl_logger_console.config import ConsoleConfig


class ConsoleLogger:
    """Shows the progress of each stage on standard output.

    Args:
        console: where to draw; default: standard output.
        clock: seconds, monotonic.
    """

    def __init__(
        self, config: ConsoleConfig, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self._console = console or Console()
        self._clock = clock
        self._progress: StageProgress | None = None
        self._view: LiveView | PlainView | None = None

    def start(self, info: RunInfo) -> None:
        self.close()
        self._progress = StageProgress(info, self._clock)
        if self._console.is_terminal:
            self._view = LiveView(self._console, self._progress)
        else:
            self._view = PlainView(self._console.file, self._progress, every_s=self.config.every_s)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._progress is not None and self._view is not None:
            self._progress.advance(step)
            self._view.update(step, metrics)

    def doing(self, what: str | None) -> None:
        if self._progress is not None and self._view is not None:
            ended, took_s = self._progress.begin(what)
            if ended is not None:
                self._view.ended(ended, took_s)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Samples are in samples.jsonl; in the terminal they would push the progress away."""

    def close(self) -> None:
        if self._view is not None:
            self._view.close()
        self._view = self._progress = None
