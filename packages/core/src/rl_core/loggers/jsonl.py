"""metrics.jsonl and samples.jsonl: everything a run reports, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.contracts.logger import RunInfo
from rl_core.io.appending import AppendedFile
from rl_core.io.values import plain

if TYPE_CHECKING:
    from rl_core.loggers.config import JsonlConfig


class JsonlLogger:
    """Appends ``{"step", "stage", **metrics}`` to ``metrics.jsonl``, and sample rows to ``samples.jsonl``.

    Lines reach the operating system at once, so another process can follow the files; while the disk is full they wait
    in memory. JSON has no word for infinity and NaN: such values are written as ``null``.
    """

    def __init__(self, config: JsonlConfig) -> None:
        self.config = config
        self._files: dict[str, AppendedFile] = {}
        self._stage = ""

    def start(self, info: RunInfo) -> None:
        self._stage = info.stage
        first = info.first_step if info.first_step > 1 else 0  # the evaluation before step 1 is step 0
        for file in self._files.values():
            file.reopen(without=lambda key: key is not None and key[0] == info.stage and key[1] >= first)
        if self._files:
            return
        for name in ("metrics", "samples"):
            self._files[name] = AppendedFile(Path(info.directory) / f"{name}.jsonl")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("metrics", step, metrics)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._write("samples", step, row)

    def doing(self, what: str | None) -> None:
        """Rows that waited for room are written before a checkpoint that has the room is."""
        for file in self._files.values():
            file.retry()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self, name: str, step: int, row: Mapping[str, Any]) -> None:
        line = {"step": step, "stage": self._stage, **{key: plain(value) for key, value in row.items()}}
        self._files[name].append(json.dumps(line, ensure_ascii=False, allow_nan=False), key=(self._stage, step))
