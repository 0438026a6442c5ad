"""metrics.jsonl and samples.jsonl: everything a run reports, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from rl_core.contracts.logger import RunInfo

if TYPE_CHECKING:
    from rl_core.loggers.config import JsonlConfig


class JsonlLogger:
    """Appends ``{"step", "stage", **metrics}`` to ``metrics.jsonl``, and sample rows to ``samples.jsonl``.

    Lines reach the operating system at once, so another process can follow the files. JSON has no
    word for infinity and NaN: such values are written as ``null``.
    """

    def __init__(self, config: JsonlConfig) -> None:
        self.config = config
        self._files: dict[str, IO[str]] = {}
        self._stage = ""

    def start(self, info: RunInfo) -> None:
        self.close()
        self._stage = info.stage
        for name in ("metrics", "samples"):
            self._files[name] = _open(Path(info.directory) / f"{name}.jsonl")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("metrics", step, metrics)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._write("samples", step, row)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self, name: str, step: int, row: Mapping[str, Any]) -> None:
        line = {"step": step, "stage": self._stage, **{key: plain(value) for key, value in row.items()}}
        self._files[name].write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """``value`` in JSON's types: numpy becomes Python, what is not finite ``None``, anything else its ``str``."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


def _open(path: Path) -> IO[str]:
    """Open for appending, line by line; a line that a crash cut short is ended first, never removed."""
    torn = False
    if path.exists() and path.stat().st_size > 0:
        with path.open("rb") as existing:
            existing.seek(-1, os.SEEK_END)
            torn = existing.read() != b"\n"
    # A lone surrogate from a tokenizer becomes \udXXX, which is how JSON spells it.
    file = path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    if torn:
        file.write("\n")
    return file
