"""The summary of a run, read from its directory without changing it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_core.io.files import open_regular, parse_object
from rl_core.training.directory import read_status

_TAIL_BYTES = 256 * 1024
_LARGEST = 10**308
"""Whole numbers from here on are no floating-point numbers."""
_REWARD = ("rollout/reward_mean",)
_ACCURACY = ("eval/accuracy",)
_LOSS = ("train/loss", "eval/loss")


@dataclass(frozen=True)
class RunSummary:
    """One row of ``rl runs``.

    Attributes:
        status: ``running``, ``finished``, ``failed`` or ``interrupted`` as the run wrote it; ``killed``
            where it says running but its process is gone; ``unknown`` where status.json is missing or
            cannot be read.
        step: the newest step; None before the first.
        reward, accuracy, loss: the newest value in the last rows of metrics.jsonl.
        age_s: seconds since the run last wrote its status or its metrics.
        error: why it failed; empty otherwise.
    """

    name: str
    path: Path
    status: str
    stage: str = ""
    step: int | None = None
    reward: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    age_s: float = 0.0
    error: str = ""


def summarize_runs(directory: Path) -> list[RunSummary]:
    """The runs in ``directory`` (``directory/*/config.yaml``), the most recently active first."""
    runs = [summarize_run(path.parent) for path in directory.glob("*/config.yaml")]
    return sorted(runs, key=lambda run: (run.age_s, run.name))


def summarize_run(path: Path) -> RunSummary:
    """Read one run directory; files that are missing or cut short count as absent."""
    status = read_status(path)
    rows = list(_newest_rows(path / "metrics.jsonl"))
    newest = rows[0] if rows else {}
    written = [_modified(path / name) for name in ("config.yaml", "status.json", "metrics.jsonl")]
    return RunSummary(
        name=path.name,
        path=path,
        status=_liveness(status, _modified(path / "status.json")),
        stage=str(status.get("stage") or newest.get("stage") or ""),
        step=_step(status, newest),
        reward=_latest(rows, _REWARD),
        accuracy=_latest(rows, _ACCURACY),
        loss=_latest(rows, _LOSS),
        age_s=time.time() - max(written),
        error=str(status.get("error") or ""),
    )


def _liveness(status: Mapping[str, Any], written: float) -> str:
    word = str(status.get("status") or "unknown")
    pid = status.get("pid")
    if word != "running" or type(pid) is not int or pid < 0:
        return word
    return "running" if _is_alive(pid, written) else "killed"


def _is_alive(pid: int, written: float) -> bool:
    """Whether the process that wrote the status at time ``written`` still exists."""
    import psutil

    try:
        process = psutil.Process(pid)
        # A process born after the status was written is another one that got the same number.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1.0
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def _newest_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows at the end of a JSON-lines file, newest first; the file may be large and still growing."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        try:
            yield parse_object(line)
        except ValueError:
            continue  # cut at the start of the tail, or half-written at the end


def _latest(rows: list[Mapping[str, Any]], names: tuple[str, ...]) -> float | None:
    for name in names:
        for row in rows:
            value = row.get(name)
            if isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST):
                return float(value)
    return None


def _step(status: Mapping[str, Any], newest: Mapping[str, Any]) -> int | None:
    for source in (status, newest):
        if type(source.get("step")) is int:
            return source["step"]
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
