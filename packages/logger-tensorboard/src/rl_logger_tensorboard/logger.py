"""Writes TensorBoard event files with TensorBoard's own writer; torch and TensorFlow are not needed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.contracts.logger import RunInfo
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rl_logger_tensorboard.timeline import Timeline

if TYPE_CHECKING:
    from rl_logger_tensorboard.config import TensorboardConfig

_QUEUE = 1000


class TensorboardLogger:
    """One scalar per metric, samples as text.

    With several stages, tags are prefixed with the stage's name and steps count on from stage to
    stage. A resumed run writes a further event file; what was logged after the checkpoint it, or a run that
    recovered from a failure, continues from is hidden by TensorBoard.
    """

    def __init__(self, config: TensorboardConfig) -> None:
        self.config = config
        self._writer: EventFileWriter | None = None
        self._prefix = ""
        self._offset = 0
        self._logged = -1

    def start(self, info: RunInfo) -> None:
        directory = Path(info.directory) / "tensorboard"
        directory.mkdir(parents=True, exist_ok=True)
        self._offset = Timeline(directory / "stages.json").start(info.stage, info.stages, info.total_steps)
        self._prefix = f"{info.stage}/" if len(info.stages) > 1 else ""
        first = self._offset + info.first_step
        again = first <= self._logged
        if self._writer is None:
            self._writer = EventFileWriter(str(directory), _QUEUE, self.config.flush_s)
            again = True
        if again:
            # TensorBoard takes every START but a directory's first for a restart and hides what it
            # has from this step on: those steps are about to be written again.
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(step=first, session_log=restart))
            self._logged = first - 1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=self._prefix + name, simple_value=value) for name, value in metrics.items()]
        self._add(step, Summary(value=values))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.config.samples and rows:
            self._add(step, text_pb(f"{self._prefix}samples", as_markdown(rows)))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, step: int, summary: Summary) -> None:
        self._logged = max(self._logged, self._offset + step)
        self._write(Event(step=self._offset + step, summary=summary))

    def _write(self, event: Event) -> None:
        if self._writer is not None:
            event.wall_time = time.time()
            self._writer.add_event(event)


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sample rows for TensorBoard's text page: numbers on one line, texts verbatim."""
    blocks = []
    for row in rows:
        texts = {k: v for k, v in row.items() if isinstance(v, str)}
        others = {k: v for k, v in row.items() if k not in texts}
        parts = []
        if others:
            parts.append(", ".join(f"**{name}** `{_inline(value)}`" for name, value in others.items()))
        for name, text in texts.items():
            # Indented, not fenced: a fence could be closed by the text itself.
            parts.append(f"**{name}**\n\n" + "\n".join("    " + line for line in (text or " ").split("\n")))
        blocks.append("\n\n".join(parts))
    return "\n\n---\n\n".join(blocks)


def _inline(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str).replace("`", "'")
