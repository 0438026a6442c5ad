"""The console on a terminal: a table with a progress bar that is redrawn in place."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rl_logger_console.stage import COLUMNS, StageProgress, duration, is_evaluation

_ROWS = 6
_REFRESH_PER_SECOND = 4
_WIDE = 100


class LiveView:
    """Shows one stage and leaves its last state on the screen when closed."""

    def __init__(self, console: Console, progress: StageProgress) -> None:
        self._progress = progress
        self._gap = 2 if console.width >= _WIDE else 1
        self._rows: list[tuple[int, Mapping[str, float]]] = []
        self._evaluated: tuple[int, Mapping[str, float]] | None = None
        self._live = Live(
            console=console, refresh_per_second=_REFRESH_PER_SECOND, get_renderable=self.render, transient=False
        )
        self._live.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row; of earlier ones the last few stay, and always the latest evaluation."""
        if is_evaluation(metrics):
            self._evaluated = (step, metrics)
        self._rows = [*self._rows, (step, metrics)][-_ROWS:]

    def ended(self, what: str, took_s: float) -> None:
        """The bar no longer names it."""

    def close(self) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """The stage's heading with its bar, above the table of recent steps."""
        return Group(self._bar(), self._table())

    def _bar(self) -> RenderableType:
        progress = self._progress
        remaining = progress.remaining_s
        left = "" if remaining is None or progress.step >= progress.total else f", {duration(remaining)} left"
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(progress.heading, style="bold"),
            ProgressBar(total=progress.total, completed=progress.step, width=30),
            Text(f"step {progress.step}/{progress.total}"),
            Text(f"{duration(progress.elapsed_s)}{left}", style="dim"),
            Text(progress.activity, style="cyan"),
        )
        return line

    def _table(self) -> RenderableType:
        rows = self._rows
        if self._evaluated is not None and self._evaluated not in rows:
            rows = [self._evaluated, *rows]
        shown = [column for column in COLUMNS if any(column.value(metrics) for _, metrics in rows)]
        table = Table(box=None, padding=(0, self._gap, 0, 0), header_style="dim")
        table.add_column("step", justify="right", style="dim")
        for column in shown:
            table.add_column(column.title, justify="right", no_wrap=True)
        for step, metrics in rows:
            newest = step == rows[-1][0]
            table.add_row(str(step), *(column.value(metrics) for column in shown), style="" if newest else "dim")
        return table if rows else Text("waiting for the first step", style="dim")
