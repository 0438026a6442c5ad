"""Checkpoints: complete or absent.

A checkpoint is written under a temporary name, every file is fsynced, the manifest with sizes and
checksums comes last, and one rename makes it visible. Readers take the newest folder whose
manifest matches what is on disk. An older one is removed only when a newer one is visible.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.errors import RLError, StorageError
from rl_core.run.manifest import damage, fsync, size_of, write_manifest
from rl_core.run.retention import Best, Retention

if TYPE_CHECKING:
    from rl_core.config.run_section import RunSection

logger = logging.getLogger(__name__)

STATE = "state.json"
_TEMPORARY, _REPLACED, _REMOVED = ".tmp-", ".old-", ".gone-"


@dataclass(frozen=True)
class RunState:
    """What a resume needs besides the models.

    Attributes:
        stage, step: the last finished step.
        position: data rows drawn so far.
        weights_version: version of the policy weights.
        algorithm: the algorithm's own state.
        fingerprint: of the training data.
        metrics: of the step.
    """

    stage: str
    step: int
    position: int
    weights_version: int
    fingerprint: str = ""
    algorithm: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one stage, as ``<folder>/step-000100``."""

    def __init__(
        self, folder: Path, *, keep_last: int = 2, keep_every: int | None = None, keep_best: Best | None = None
    ) -> None:
        self.folder = folder
        self._retention = Retention(last=keep_last, every=keep_every, best=keep_best)
        self._temporary: Path | None = None
        self._warned = False

    @classmethod
    def of(cls, folder: Path, run: RunSection) -> CheckpointStore:
        """The store that a stage's section ``run`` describes."""
        best = Best(**run.keep_best.model_dump()) if run.keep_best else None
        return cls(folder, keep_last=run.keep_last, keep_every=run.keep_every, keep_best=best)

    def save(self, state: RunState, write: Callable[[Path], None]) -> Path:
        """Write one checkpoint: ``write(directory)`` puts the models there."""
        self.begin(state, write)
        return self.commit(state.step)

    def begin(self, state: RunState, write: Callable[[Path], None]) -> None:
        """Start a checkpoint: ``write(directory)`` may go on in the background until :meth:`commit`.

        Raises:
            StorageError: it cannot be written; what there is of it is removed.
        """
        self.discard()
        self._require_room(state.step)
        # A name of its own: a worker of a killed run may still be writing to the one it was given.
        temporary = self.folder / f"{_TEMPORARY}{_name(state.step)}-{uuid.uuid4().hex[:8]}"
        with self._discarded_on_failure(state.step):
            temporary.mkdir(parents=True)
            self._temporary = temporary
            write(temporary)
            (temporary / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")

    def commit(self, step: int) -> Path:
        """Make the checkpoint of ``step``, which is written completely, visible.

        Raises:
            StorageError: it cannot be written; what there is of it is removed.
        """
        assert self._temporary is not None, "commit() follows begin()"
        final = self.folder / _name(step)
        with self._discarded_on_failure(step):
            write_manifest(self._temporary)
            if final.exists():  # the same step saved again after a resume
                final.rename(self.folder / f"{_REPLACED}{_name(step)}-{uuid.uuid4().hex[:8]}")
            self._temporary.rename(final)
            self._temporary = None
            fsync(self.folder)
        self._warn_without_metric(final)
        self._prune()
        return final

    def discard(self) -> None:
        """Remove a checkpoint that was begun and not committed."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None where there never was one.

        Broken ones are passed over with a warning that says what is wrong.

        Raises:
            RLError: there are checkpoints, and all of them are damaged.
        """
        self._put_back()
        for path in sorted(self.folder.glob(f"{_TEMPORARY}*")):
            logger.warning("checkpoint %s is not complete: the run ended while it was written; passed over", path)
        problems = []
        for path in self._paths():
            problem = damage(path)
            if problem is None:
                return path
            problems.append(f"    {path.name}: {problem}")
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, problem)
        if problems:
            raise RLError(
                "\n".join([f"every checkpoint in {self.folder} is damaged", *problems])
                + "\n    restore one from a copy, or move the folder away to train this stage from its start"
            )
        return None

    def newest_name(self) -> str | None:
        """Name of the newest visible checkpoint; it is not verified."""
        return next((path.name for path in self._paths()), None)

    def at(self, step: int) -> Path:
        """The checkpoint of ``step``.

        Raises:
            RLError: there is none, or it is damaged; the message lists those there are.
        """
        self._put_back()
        path = self.folder / _name(step)
        have = ", ".join(str(_step(p)) for p in reversed(self._paths())) or "none"
        if not path.is_dir():
            raise RLError(f"there is no checkpoint of step {step} in {self.folder} (steps there: {have})")
        problem = damage(path)
        if problem:
            raise RLError(f"checkpoint {path} is damaged: {problem}\n    choose another step with --step ({have})")
        return path

    def _paths(self) -> list[Path]:
        """Visible checkpoints, newest first."""
        found = [p for p in self.folder.glob("step-*") if p.name[5:].isdecimal()]
        return sorted(found, key=_step, reverse=True)

    def _put_back(self) -> None:
        """Undo a replacement that was cut off between its two renames."""
        for path in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / path.name[len(_REPLACED) :].rpartition("-")[0]
            if not final.exists():
                path.rename(final)

    def _require_room(self, step: int) -> None:
        newest = next(iter(self._paths()), None)
        if newest is None:
            return
        needed, free = size_of(newest), shutil.disk_usage(self.folder).free
        if free < needed:
            raise StorageError(
                f"the checkpoint of step {step} needs about {_readable(needed)}, "
                f"{self.folder} has {_readable(free)} left"
            )

    @contextmanager
    def _discarded_on_failure(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            where = f" ({error.filename})" if error.filename else ""
            raise StorageError(
                f"the checkpoint of step {step} cannot be written: {error.strerror or error}{where}"
            ) from error
        except StorageError:
            self.discard()
            raise

    def _warn_without_metric(self, path: Path) -> None:
        best = self._retention.best
        if best is None or self._warned or best.metric in _metrics_of(path):
            return
        self._warned = True
        logger.warning(
            "run.keep_best: %s has no metric %s, so it cannot be among the best; evaluate at the steps that are saved",
            path.name,
            best.metric,
        )

    def _prune(self) -> None:
        paths = {_step(p): p for p in self._paths()}
        kept = self._retention.kept({step: _metrics_of(path) for step, path in paths.items()})
        for step in paths.keys() - kept:
            # Removed in one step too: half of a checkpoint would look like a damaged one.
            paths[step].rename(self.folder / f"{_REMOVED}{paths[step].name}-{uuid.uuid4().hex[:8]}")
        for prefix in (_REMOVED, _REPLACED, _TEMPORARY):
            for leftover in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)


@dataclass
class Attempt:
    """Whether something could be written."""

    succeeded: bool = True


@contextmanager
def training_goes_on(store: CheckpointStore) -> Iterator[Attempt]:
    """Turn a :class:`StorageError` inside the block into a warning: a full disk must not cost the run its progress."""
    attempt = Attempt()
    try:
        yield attempt
    except StorageError as error:
        attempt.succeeded = False
        store.discard()
        newest = store.newest_name()
        logger.warning(
            "%s; training goes on, %s, and saving is tried again when the next checkpoint is due",
            error,
            f"{newest} is kept" if newest else "there is no checkpoint yet",
        )


def read_state(path: Path) -> RunState:
    """The run state inside a checkpoint.

    Raises:
        RLError: it is damaged.
    """
    file = path / STATE
    try:
        return RunState(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise RLError(
            f"{file} is damaged: {type(error).__name__}: {error}\n"
            f"    restore the checkpoint from a copy, or remove {path} to use the one before"
        ) from error


def _readable(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 1000 else f"{count / 1000:.3g} TB"


def _metrics_of(path: Path) -> dict[str, float]:
    try:
        return read_state(path).metrics
    except RLError:
        return {}


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _step(path: Path) -> int:
    return int(path.name[5:])
