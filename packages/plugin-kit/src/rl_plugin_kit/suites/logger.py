"""Conformance rules for loggers (:mod:`rl_core.contracts.logger`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rl_core.contracts.logger import Logger, RunInfo, ShowsActivity

from rl_plugin_kit.suites.base import ComponentConformance


class LoggerConformance(ComponentConformance):
    """A run of two stages is logged into a folder, then continued by a second logger, as after a resume."""

    kind = "logger"
    contracts = (Logger, ShowsActivity)

    def test_a_run_is_logged_from_start_to_close(self, tmp_path: Path) -> None:
        with self._built() as one:
            for stage in ("warmup", "train"):
                self._log_stage(one, tmp_path, stage, first=1)

    def test_metrics_may_come_and_go(self, tmp_path: Path) -> None:
        steps: tuple[dict[str, float], ...] = (
            {"train/loss": 1.0},
            {"eval/accuracy": 0.5},
            {},
            {"train/loss": float("nan")},
        )
        with self._built() as one:
            one.start(info(tmp_path, "train", first=1))
            for step, metrics in enumerate(steps):
                self._call(one, "log", step, MappingProxyType(metrics), says=f"log(step, {metrics})")

    def test_closing_twice_or_without_a_start_is_fine(self, tmp_path: Path) -> None:
        never = self.build()
        self._call(never, "close", says="close() without start()")
        with self._built() as one:
            self._log_stage(one, tmp_path, "train", first=1)
        self._call(one, "close", says="close() a second time")

    def test_a_resumed_run_loses_nothing_that_was_logged(self, tmp_path: Path) -> None:
        for first in (1, 3):
            before = _texts(tmp_path)
            with self._built() as one:
                self._log_stage(one, tmp_path, "train", first=first)
            for path, text in before.items():
                now = (tmp_path / path).read_bytes() if (tmp_path / path).is_file() else b""
                self.expect(
                    now.startswith(text), f"a resumed run overwrites {path}; files are appended to, never truncated"
                )

    @contextmanager
    def _built(self) -> Iterator[Any]:
        """A logger that is closed at the end, also where it breaks a rule before."""
        one = self.build()
        try:
            yield one
        except BaseException:
            with suppress(Exception):  # the first finding counts
                one.close()
            raise
        one.close()

    def _log_stage(self, one: Any, directory: Path, stage: str, *, first: int) -> None:
        self._call(one, "start", info(directory, stage, first=first), says="start")
        if first == 1:
            self._call(one, "log", 0, MappingProxyType({"eval/loss": 2.0}), says="log of step 0")
        for step in (first, first + 1):
            self._call(one, "log", step, MappingProxyType({"train/loss": 1.0 / step}), says="log")
            rows = ({"prompt": "1+1=", "completion": "2", "answer": None, "reward": 1.0},)
            self._call(one, "log_samples", step, rows, says="log_samples")

    def _call(self, one: Any, method: str, *arguments: Any, says: str) -> None:
        try:
            getattr(one, method)(*arguments)
        except Exception as error:
            raise AssertionError(f"{self.label}: {says} raised {type(error).__name__}: {error}") from error


def info(directory: Path, stage: str, *, first: int) -> RunInfo:
    """A stage of a run of two stages, with four steps."""
    return RunInfo(
        run="conformance",
        directory=str(directory),
        stage=stage,
        stages=("warmup", "train"),
        total_steps=4,
        first_step=first,
        config={"run": {"steps": 4}},
    )


def _texts(directory: Path) -> dict[str, bytes]:
    """Text files of the folder: what may only grow (a picture is drawn anew)."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            try:
                content.decode()
            except UnicodeDecodeError:
                continue
            found[str(path.relative_to(directory))] = content
    return found
