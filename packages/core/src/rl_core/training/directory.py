"""The run directory: everything a run leaves behind, and the lock that keeps a second one out.

::

    config.yaml      the resolved config       metrics.jsonl    one object per step
    secrets.json     secrets typed into it     environment.json marks of what came from ${env:…}
    plugins.json     installed plugin versions samples.jsonl    generated samples
    status.json      what the run is doing     logs/            rl.log, a log per worker, Ray's own
    checkpoints/     of the stage              export/          Hugging Face folder of the result
    profile/         with --profile: where the time of the steps goes, and traces
    saved.json       the newest step that was saved      finished.json    steps, when the stage has finished
    stages/NAME/     the last five, per stage, where the config has stages
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl_secrets.redaction import hide_secrets

from rl_core.errors import ConfigError, EnvironmentProblem, RLError, StorageError
from rl_core.io.files import open_regular, parse_object, read_object, read_regular, special_files, write_atomic
from rl_core.io.lock import LOCK, FolderLock
from rl_core.training.sidecars import SIDECARS

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
_STATUS = "status.json"
_LOGS = "logs"
_BEFORE = frozenset({_LOGS, LOCK, "plugins.json", "plugins.json.tmp", "config.yaml.tmp"}) | SIDECARS
"""What a run that was killed before it wrote config.yaml leaves; a new one may take the folder."""
_MOST_SHOWN = 5


class RunDirectory:
    """A run's folder on disk, locked for one process: first it is locked, then it is looked at."""

    def __init__(self, lock: FolderLock) -> None:
        self.path = lock.path
        self._lock = lock
        self._status: dict[str, Any] = {}
        self._status_is_old = False

    @property
    def logs(self) -> Path:
        return self.path / _LOGS

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
        write_sidecars: Callable[[Path], None] = lambda folder: None,
    ) -> RunDirectory:
        """Start a new run directory; ``write_sidecars`` writes the files that config.yaml needs, before it.

        Raises:
            ConfigError: it already holds something, or another process is working in it; nothing is touched.
            EnvironmentProblem: it cannot be written.
        """
        run = cls.claim(path)
        with run.closed_on_failure():
            if run.begun:
                raise _exists(run.path)
            run.begin(config_yaml=config_yaml, manifest=manifest, write_sidecars=write_sidecars)
        return run

    @classmethod
    def claim(cls, path: str | Path) -> RunDirectory:
        """Lock a run directory, or a place for one, which :attr:`begun` tells.

        Raises: as :meth:`create`, but not for a run that is there.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or _is_foreign(path)):
            raise _exists(path)
        try:
            run = cls(FolderLock.take(path, make=True))
        except OSError as error:
            raise _unwritable(path, error, "\n    choose another with run.directory=PATH") from error
        with run.closed_on_failure():
            if _is_foreign(path):
                raise _exists(path)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Continue in an existing run directory.

        Raises:
            ConfigError: there is no run, another process is working in it, or it holds files that no run makes.
            EnvironmentProblem: it cannot be written.
        """
        path = Path(path)
        if not path.is_dir():
            raise _no_run(path)
        try:
            run = cls(FolderLock.take(path))
        except OSError as error:
            raise _unwritable(path, error) from error
        with run.closed_on_failure():
            if not run.begun:
                raise _no_run(path)
            refuse_special_files(path)
            try:
                run.logs.mkdir(exist_ok=True)
            except OSError as error:
                raise _unwritable(path, error) from error
        return run

    @property
    def begun(self) -> bool:
        """Whether there is a run: its config.yaml is written."""
        return (self.path / CONFIG).is_file()

    def begin(
        self,
        *,
        config_yaml: str,
        manifest: Mapping[str, str],
        write_sidecars: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Make the claimed folder a run directory; ``write_sidecars`` as for :meth:`create`.

        Raises:
            ConfigError: it holds files that no run makes.
            EnvironmentProblem: it cannot be written.
        """
        refuse_special_files(self.path)
        try:
            self.logs.mkdir(exist_ok=True)
            write_atomic(self.path / "plugins.json", json.dumps(dict(manifest), indent=2) + "\n")
            write_sidecars(self.path)
            write_atomic(self.path / CONFIG, config_yaml)  # last: from here on it is a run directory
        except OSError as error:
            raise _unwritable(self.path, error, "\n    choose another with run.directory=PATH") from error

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    @contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Release the lock where the block fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def require_intact(self) -> None:
        """Look whether the folder is still there; to be called before and after anything is written by its path.

        Raises:
            RLError: it was removed, moved, replaced or emptied meanwhile.
        """
        lost = self._lock.lost()
        if lost is None and not self.begun:
            lost = "was emptied", None
        if lost is not None:
            what, place = lost
            advice = f"continue it there: rl resume {place}" if place else "start the run again in a new directory"
            raise RLError(f"the run directory {self.path} {what} while the run was working in it\n    {advice}")

    def replace_config(self, config_yaml: str) -> None:
        """Write another config.yaml; the previous one is kept next to it, named by the time."""
        saved = self.path / CONFIG
        if saved.read_text(encoding="utf-8") != config_yaml:
            kept = self.path / f"config.{time.strftime('%Y%m%d-%H%M%S')}.yaml"
            write_atomic(kept, saved.read_text(encoding="utf-8"))
            write_atomic(saved, config_yaml)

    def status(self, **changes: Any) -> None:
        """Update status.json (``status``, ``stage``, ``step``, ``error``; the process id is added).

        It goes where the folder is now, if that was moved, too. A full disk does not stop a run here; it is told once.
        """
        if changes.get("error"):
            changes["error"] = hide_secrets(str(changes["error"]))
        self._status |= {"pid": os.getpid(), **changes}
        try:
            write_atomic(Path(_STATUS), json.dumps(self._status) + "\n", durable=False, dir_fd=self._lock.fd)
            self._status_is_old = False
        except OSError as error:
            if not self._status_is_old:
                logger.warning("cannot write %s: %s", self.path / _STATUS, error.strerror or error)
            self._status_is_old = True

    def ended_well(self) -> bool:
        """Whether the run wrote that it has finished; a kill may come before that."""
        return read_status(self.path).get("status") == "finished"

    def last_step(self, stage: str) -> int:
        """The newest step that ``stage`` logged; 0 where there is none."""
        newest = 0
        for row in self._rows():
            if row.get("stage") == stage and type(row.get("step")) is int:
                newest = max(newest, row["step"])
        return newest

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, without one that a crash cut short."""
        if not self.metrics.exists():
            return
        for line in _lines(self.metrics):
            with contextlib.suppress(ValueError):
                yield parse_object(line)

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
            for line in _lines(path):
                (kept if _belongs(line, stage, step) else dropped).append(line)
            if dropped:
                target = open_regular(self.path / f"{name}.discarded.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                with os.fdopen(target, "a", encoding="utf-8") as discarded:
                    discarded.writelines(line if line.endswith("\n") else line + "\n" for line in dropped)
                write_atomic(path, "".join(kept))
                moved += len(dropped) if name == "metrics" else 0
        return moved


def _lines(path: Path) -> list[str]:
    # Of bytes only a newline ends a line; of text U+2028 does, too, which JSON leaves as it is inside of strings.
    return [line.decode("utf-8", errors="replace") for line in read_regular(path).splitlines(keepends=True)]


def _belongs(line: str, stage: str, step: int) -> bool:
    try:
        row = parse_object(line)
    except ValueError:
        return False
    at = row.get("step", 0)
    return row.get("stage") != stage or (isinstance(at, int) and at <= step)


def read_status(path: Path) -> dict[str, Any]:
    """status.json, or an empty dict where a crash or a foreign folder left none."""
    try:
        return read_object(path / _STATUS)
    except (OSError, ValueError):
        return {}


def refuse_special_files(path: Path) -> None:
    """Refuse a run directory with files that no run makes and that could hang a reader or lead elsewhere.

    ``logs/`` is left out, where Ray's own logs are linked.

    Raises:
        ConfigError: pipes, sockets, devices or links to outside of it; the message lists them.
        EnvironmentProblem: it cannot be read.
    """
    try:
        found = sorted(special_files(path, without=frozenset({_LOGS})))
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    if found:
        shown = [f"    {where}: {what}" for where, what in found[:_MOST_SHOWN]]
        shown += [f"    and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
        raise ConfigError(
            "\n".join([f"the run directory {path} holds what no run writes", *shown])
            + "\n    remove it, or put the files themselves there; run.directory may be a link, nothing inside of it"
        )


def require_writable(path: Path) -> None:
    """Fail early where an export target cannot be created.

    Raises:
        RLError: it exists already; nothing is overwritten.
    """
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise RLError(f"{path} already exists and is not empty\n    choose another folder with --to")


def _is_foreign(path: Path) -> bool:
    """Whether a folder holds something, and that is neither a run nor what is left of the beginning of one."""
    return not (path / CONFIG).is_file() and any(entry.name not in _BEFORE for entry in path.iterdir())


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"the run directory {path} already exists\n"
        f"    continue it:  rl resume {path}\n"
        "    or start another:  add run.name=NEW_NAME to the command"
    )


def _no_run(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a run directory (it has no {CONFIG})\n    list runs with: rl runs")


def _unwritable(path: Path, error: OSError, advice: str = "") -> EnvironmentProblem:
    return EnvironmentProblem(f"cannot write the run directory {path}: {error.strerror or error}{advice}")
