"""The run directory: everything a run leaves behind, and the lock that keeps a second one out.

::

    config.yaml      the resolved config       metrics.jsonl    one object per step
    secrets.json     secrets typed into it     environment.json marks of what came from ${env:…}
    plugins.json     installed plugin versions samples.jsonl    generated samples
    status.json      what the run is doing     logs/            rl.log, a log per worker, Ray's own
    checkpoints/     of the stage              export/          Hugging Face folder of the result
    profile/         with --profile: where the time of the steps goes, and traces
    stages/NAME/     the last three, per stage, where the config has stages
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rl_core.config.redaction import hide_secrets
from rl_core.errors import ConfigError, EnvironmentProblem, RLError, StorageError
from rl_core.run.beside import BESIDE

logger = logging.getLogger(__name__)

_BEFORE = frozenset({"logs", ".lock", "plugins.json", "plugins.json.tmp", "config.yaml.tmp"}) | BESIDE
"""What a run that was killed before it wrote config.yaml leaves; a new one may take the folder."""


class RunDirectory:
    """A run's folder on disk, locked for one process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None
        self._status: dict[str, Any] = {}
        self._status_is_old = False

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        config_yaml: str,
        manifest: Mapping[str, str],
        write_beside: Callable[[Path], None] = lambda folder: None,
    ) -> RunDirectory:
        """Start a new run directory; ``write_beside`` writes what config.yaml needs beside it, before it is there.

        Raises:
            ConfigError: it already holds something; nothing is touched.
            EnvironmentProblem: it cannot be written.
        """
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or any(p.name not in _BEFORE for p in run.path.iterdir())):
            raise ConfigError(
                f"the run directory {run.path} already exists\n"
                f"    continue it:  rl resume {run.path}\n"
                "    or start another:  add run.name=NEW_NAME to the command"
            )
        try:
            run.logs.mkdir(parents=True, exist_ok=True)
            run._acquire()
            write_atomic(run.path / "plugins.json", json.dumps(dict(manifest), indent=2) + "\n")
            write_beside(run.path)
            write_atomic(run.path / "config.yaml", config_yaml)  # last: from here on it is a run directory
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot write the run directory {run.path}: {error.strerror or error}\n"
                "    choose another with run.directory=PATH"
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Continue in an existing run directory.

        Raises:
            ConfigError: there is no run, or another process is working in it.
        """
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise ConfigError(f"{run.path} is not a run directory (it has no config.yaml)\n    list runs with: rl runs")
        try:
            run.logs.mkdir(exist_ok=True)
            run._acquire()
        except OSError as error:
            raise EnvironmentProblem(f"cannot write the run directory {run.path}: {error.strerror or error}") from error
        return run

    def _acquire(self) -> None:
        lock = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ConfigError(
                f"another process is running in {self.path}\n    see: rl runs {self.path.parent}"
            ) from None
        self._lock = lock

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def replace_config(self, config_yaml: str) -> None:
        """Write another config.yaml; the one before is kept beside it, named by the time."""
        saved = self.path / "config.yaml"
        if saved.read_text(encoding="utf-8") != config_yaml:
            kept = self.path / f"config.{time.strftime('%Y%m%d-%H%M%S')}.yaml"
            write_atomic(kept, saved.read_text(encoding="utf-8"))
            write_atomic(saved, config_yaml)

    def status(self, **changes: Any) -> None:
        """Update status.json (``status``, ``stage``, ``step``, ``error``; the process id is added).

        A full disk does not stop a run here; it is told once.
        """
        if changes.get("error"):
            changes["error"] = hide_secrets(str(changes["error"]))
        self._status |= {"pid": os.getpid(), **changes}
        try:
            write_atomic(self.path / "status.json", json.dumps(self._status) + "\n", durable=False)
            self._status_is_old = False
        except OSError as error:
            if not self._status_is_old:
                logger.warning("cannot write %s: %s", self.path / "status.json", error.strerror or error)
            self._status_is_old = True

    def last_step(self, stage: str) -> int:
        """The newest step that ``stage`` logged; 0 where there is none."""
        newest = 0
        for row in self._rows():
            if row.get("stage") == stage and isinstance(row.get("step"), int):
                newest = max(newest, row["step"])
        return newest

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, without one that a crash cut short."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row

    def last_metrics(self, stage: str) -> dict[str, float]:
        """The newest value of each metric that ``stage`` logged."""
        newest: dict[str, float] = {}
        for row in self._rows():
            if row.get("stage") == stage:
                newest |= {k: v for k, v in row.items() if isinstance(v, int | float)}
        return newest

    def trim(self, stage: str, step: int) -> int:
        """Move what was logged of ``stage`` after ``step`` into ``*.discarded.jsonl``: those steps run again.

        Returns:
            how many metric rows were moved. A last line cut short by a crash is moved too.

        Raises:
            StorageError: there is no room for that; nothing is lost.
        """
        try:
            return self._trim(stage, step)
        except OSError as error:
            raise StorageError(
                f"the steps of stage {stage!r} after step {step} cannot be moved out of {self.metrics}: "
                f"{error.strerror or error}\n    make room, then continue with: rl resume {self.path}"
            ) from error

    def _trim(self, stage: str, step: int) -> int:
        moved = 0
        for name in ("metrics", "samples"):
            path = self.path / f"{name}.jsonl"
            if not path.exists():
                continue
            kept: list[str] = []
            dropped: list[str] = []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                (kept if _belongs(line, stage, step) else dropped).append(line)
            if dropped:
                with (self.path / f"{name}.discarded.jsonl").open("a", encoding="utf-8") as discarded:
                    discarded.writelines(line if line.endswith("\n") else line + "\n" for line in dropped)
                write_atomic(path, "".join(kept))
                moved += len(dropped) if name == "metrics" else 0
        return moved


def _belongs(line: str, stage: str, step: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return not isinstance(row, dict) or row.get("stage") != stage or row.get("step", 0) <= step


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file's content so that a crash leaves the old or the new text, never a mixture.

    ``durable=False`` spares the fsync: a power cut may then lose the newest text.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path)


def read_status(path: Path) -> dict[str, Any]:
    """status.json, or an empty dict where a crash or a foreign folder left none."""
    try:
        return json.loads((path / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def require_writable(path: Path) -> None:
    """Fail early where an export target cannot be created.

    Raises:
        RLError: it exists already; nothing is overwritten.
    """
    if path.exists() and any(path.iterdir()):
        raise RLError(f"{path} already exists and is not empty\n    choose another folder with --to")
