"""The console where output is not a terminal: aligned lines, few enough to read in a log file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from rl_logger_console.stage import COLUMNS, EVERY_STEP, SHORT_S, Column, StageProgress, duration, is_evaluation

_SHARE_OF_STAGE = 0.1
_LONGEST_SILENCE_S = 60.0
_TEXT_WIDTH = len("100.0 %")


class PlainView:
    """Prints the first step, the last, every evaluation, and some in between.

    In between, a line comes when both ``every_s`` seconds and a tenth of the stage have passed
    since the last one, and in a long stage after a minute at the latest.
    """

    def __init__(self, file: IO[str], progress: StageProgress, *, every_s: float) -> None:
        self._file = file
        self._progress = progress
        self._every_s = every_s
        self._longest_s = max(_LONGEST_SILENCE_S, every_s)
        self._last: tuple[int, float] | None = None
        self._shown: set[Column] = set()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a line if one is due."""
        if self._is_due(step, metrics):
            self._print(step, metrics)
            self._last = (step, self._progress.elapsed_s)

    def ended(self, what: str, took_s: float) -> None:
        """Say how long an activity took, unless it is a part of every step."""
        if took_s > SHORT_S and what not in EVERY_STEP:
            self._file.write(f"{self._progress.info.stage}  {what} took {duration(took_s)}\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing is open."""

    def _is_due(self, step: int, metrics: Mapping[str, float]) -> bool:
        if self._last is None or step >= self._progress.total or is_evaluation(metrics):
            return True
        last_step, last_time = self._last
        # The evaluation before training is not the first step.
        if last_step == 0 and step > 0:
            return True
        silence = self._progress.elapsed_s - last_time
        enough_steps = step - last_step >= _SHARE_OF_STAGE * self._progress.total
        return silence >= self._longest_s or (enough_steps and silence >= self._every_s)

    def _print(self, step: int, metrics: Mapping[str, float]) -> None:
        progress = self._progress
        total = str(progress.total)
        parts = [f"{progress.info.stage}  step {step:>{len(total)}}/{total}"]
        for column in COLUMNS:
            text = column.value(metrics)
            if not text and column not in self._shown:
                continue
            # A column once shown keeps its place, so that lines stay aligned.
            self._shown.add(column)
            title = column.title if text else " " * len(column.title)
            parts.append(f"{title} {text:>{_TEXT_WIDTH}}")
        remaining = progress.remaining_s
        if remaining is not None and step < progress.total:
            parts.append(f"{duration(remaining)} left")
        self._file.write("  ".join(parts).rstrip() + "\n")
        self._file.flush()
