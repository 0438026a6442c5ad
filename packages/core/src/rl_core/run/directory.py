"""The run directory: everything a run leaves behind, and the lock that keeps a second one out.

::

    config.yaml      the resolved config       metrics.jsonl    one object per step
    plugins.json     installed plugin versions samples.jsonl    generated samples
    status.json      what the run is doing     logs/            rl.log, a log per worker, Ray's own
    checkpoints/     of the stage              export/          Hugging Face folder of the result
    stages/NAME/     the last two, per stage, where the config has stages
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_core.errors import ConfigError, EnvironmentProblem, RLError


class RunDirectory:
    """A run's folder on disk, locked for one process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None
        self._status: dict[str, Any] = {}

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @classmethod
    def create(cls, path: str | Path, *, config_yaml: str, manifest: Mapping[str, str]) -> RunDirectory:
        """Start a new run directory.

        Raises:
            ConfigError: it already holds something; nothing is touched.
            EnvironmentProblem: it cannot be written.
        """
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise ConfigError(
                f"the run directory {run.path} already exists\n"
                f"    continue it:  rl resume {run.path}\n"
                "    or start another:  add run.name=NEW_NAME to the command"
            )
        try:
            run.logs.mkdir(parents=True, exist_ok=True)
            run._acquire()
            write_atomic(run.path / "config.yaml", config_yaml)
            write_atomic(run.path / "plugins.json", json.dumps(dict(manifest), indent=2) + "\n")
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

    def status(self, **changes: Any) -> None:
        """Update status.json (``status``, ``stage``, ``step``, ``error``; the process id is added)."""
        self._status |= {"pid": os.getpid(), **changes}
        write_atomic(self.path / "status.json", json.dumps(self._status) + "\n", durable=False)

    def last_metrics(self, stage: str) -> dict[str, float]:
        """The newest value of each metric that ``stage`` logged."""
        newest: dict[str, float] = {}
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if row["stage"] == stage:
                    newest |= {k: v for k, v in row.items() if isinstance(v, int | float)}
        return newest

    def trim(self, stage: str, step: int) -> int:
        """Move what was logged of ``stage`` after ``step`` into ``*.discarded.jsonl``: those steps run again.

        Returns:
            how many metric rows were moved. A last line cut short by a crash is moved too.
        """
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
    return row.get("stage") != stage or row.get("step", 0) <= step


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
