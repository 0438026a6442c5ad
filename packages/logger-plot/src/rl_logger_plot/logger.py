"""Draws the curves of a run into its directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.contracts.logger import RunInfo

from rl_logger_plot.history import read_history

if TYPE_CHECKING:
    from rl_logger_plot.config import PlotConfig

_log = logging.getLogger(__name__)


class PlotLogger:
    """Reads ``metrics.jsonl`` and writes a picture when the run ends, and every so often if asked."""

    def __init__(self, config: PlotConfig) -> None:
        self.config = config
        self._info: RunInfo | None = None

    def start(self, info: RunInfo) -> None:
        self._info = info

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.config.every is not None and step > 0 and step % self.config.every == 0:
            self._draw()

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Samples have no place in the picture."""

    def close(self) -> None:
        if self._info is not None:
            self._draw()
            self._info = None

    def _draw(self) -> None:
        if self._info is None:
            return
        directory = Path(self._info.directory)
        plot_run(directory, directory / self.config.file, title=self._info.run)


def plot_run(directory: str | Path, target: str | Path, *, title: str) -> bool:
    """Draw a run's ``metrics.jsonl`` to ``target`` (.png, .svg or .pdf), replacing it in one go.

    Returns:
        False where there is nothing to draw: no file, or none of the metrics that have a panel.
    """
    from rl_logger_plot.figure import draw

    metrics, target = Path(directory) / "metrics.jsonl", Path(target)
    if not metrics.exists():
        _log.warning("%s does not exist, so there is nothing to plot; add {name: jsonl} to loggers", metrics)
        return False
    figure = draw(read_history(metrics), title=title)
    if figure is None:
        _log.info("%s holds neither loss, reward nor accuracy yet; nothing was plotted", metrics)
        return False
    temporary = target.with_name(f".{target.stem}.tmp{target.suffix}")
    figure.savefig(temporary)
    os.replace(temporary, target)
    return True
