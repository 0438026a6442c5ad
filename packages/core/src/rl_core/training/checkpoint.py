"""Checkpoints: complete or absent.

A checkpoint is written under a temporary name, every file is fsynced, the manifest with sizes and
checksums comes last, and one rename makes it visible. Readers take the newest folder whose
manifest matches what is on disk. An older one is removed only when a newer one is visible, and
nobody is reading it.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.errors import RLError, StorageError
from rl_core.io.files import read_object, write_atomic
from rl_core.training.manifest import damage, fsync, read_manifest, size_of, write_manifest
from rl_core.training.reading import Vanished, kept, unread
from rl_core.training.retention import Best, Retention
from rl_core.training.state import STATE, RunState, read_state

if TYPE_CHECKING:
    from rl_core.config.run_section import RunSection

logger = logging.getLogger(__name__)

SAVED = "saved.json"
"""Beside ``checkpoints/``: the step that was saved last."""

_TEMPORARY, _REPLACED, _REMOVED = ".tmp-", ".old-", ".gone-"
_ATTEMPTS = 20


class CheckpointStore:
    """The checkpoints of one stage, as ``<folder>/step-000100``.

    Args:
        stage: its name, which the checkpoints must have; None: any.
        record: file that says, outside of ``folder``, which step was saved last: an emptied folder is known by it.
        guard: called before anything is written; raises where the run directory is no longer in its place.
        owner: whether this process has the run directory; one that only reads repairs nothing in it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stage: str | None = None,
        keep_last: int = 2,
        keep_every: int | None = None,
        keep_best: Best | None = None,
        record: Path | None = None,
        guard: Callable[[], None] = lambda: None,
        owner: bool = True,
    ) -> None:
        self.folder = folder
        self._stage = stage
        self._retention = Retention(last=keep_last, every=keep_every, best=keep_best)
        self._record = record
        self._guard = guard
        self._owner = owner
        self._temporary: Path | None = None
        self._state: RunState | None = None
        self._warned = False

    @classmethod
    def of(
        cls,
        stage_folder: Path,
        run: RunSection,
        *,
        stage: str,
        guard: Callable[[], None] = lambda: None,
        owner: bool = True,
    ) -> CheckpointStore:
        """The store that a stage's section ``run`` describes, in the stage's folder."""
        return cls(
            stage_folder / "checkpoints",
            stage=stage,
            keep_last=run.keep_last,
            keep_every=run.keep_every,
            keep_best=Best(**run.keep_best.model_dump()) if run.keep_best else None,
            record=stage_folder / SAVED,
            guard=guard,
            owner=owner,
        )

    def save(self, state: RunState, write: Callable[[Path], None]) -> Path:
        """Write one checkpoint: ``write(directory)`` puts the models there."""
        self.begin(state, write)
        return self.commit(state.step)

    def begin(self, state: RunState, write: Callable[[Path], None]) -> None:
        """Start a checkpoint: ``write(directory)`` may go on in the background until :meth:`commit`.

        Raises:
            StorageError: it cannot be written; what there is of it is removed.
            RLError: the run directory is not in its place any more.
        """
        self._guard()
        self.discard()
        self._require_room(state.step)
        # A name of its own: a worker of a killed run may still be writing to the one it was given.
        temporary = self.folder / f"{_TEMPORARY}{_name(state.step)}-{uuid.uuid4().hex[:8]}"
        with self._discarded_on_failure(state.step):
            temporary.mkdir(parents=True)
            self._temporary = temporary
            write(temporary)
            (temporary / STATE).write_text(state.to_json(), encoding="utf-8")
        self._state = state

    def commit(self, step: int) -> Path:
        """Make the checkpoint of ``step``, which is written completely, visible.

        Raises:
            StorageError: it cannot be written; what there is of it is removed.
            RLError: the run directory is not in its place any more.
        """
        assert self._temporary is not None, "commit() follows begin()"
        assert self._state is not None
        self._guard()
        final = self.folder / _name(step)
        with self._discarded_on_failure(step):
            write_manifest(self._temporary, stage=self._state.stage, step=step)
            if final.exists():  # the same step saved again after a resume
                final.rename(self.folder / f"{_REPLACED}{_name(step)}-{uuid.uuid4().hex[:8]}")
            self._temporary.rename(final)
            self._temporary = None
            fsync(self.folder)
        self._record_step(step)
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
            RLError: there are checkpoints, and all of them are damaged; or a folder is not where it was written.
        """
        with self.reading() as path:
            return path

    @contextmanager
    def reading(self, step: int | None = None) -> Iterator[Path | None]:
        """:meth:`latest`, or the one :meth:`at` a step, which is not removed while the block lasts."""
        with ExitStack() as stack:
            for _ in range(_ATTEMPTS):
                try:
                    found = self._latest(stack) if step is None else self._at(step, stack)
                    break
                except Vanished:  # the run has saved a newer one meanwhile, and removed this one
                    stack.close()
            else:
                raise RLError(f"{self.folder}: checkpoints come and go faster than they can be read; try again")
            yield found

    def _latest(self, stack: ExitStack) -> Path | None:
        if self._owner:
            self._put_back()
            for path in sorted(self.folder.glob(f"{_TEMPORARY}*")):
                logger.warning("checkpoint %s is not complete: the run ended while it was written; passed over", path)
        problems = []
        for path in self._paths():
            with ExitStack() as trying:
                trying.enter_context(kept(path))
                problem = damage(path)
                if problem is None:
                    self._require_place(path)
                    stack.push(trying.pop_all())
                    return path
            problems.append(f"    {path.name}: {problem}")
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, problem)
        if problems:
            raise RLError(
                "\n".join([f"every checkpoint in {self.folder} is damaged", *problems])
                + "\n    restore one from a copy, or move the folder away and train this stage again with "
                "--allow restart"
            )
        return None

    def lost(self) -> int | None:
        """The step that was saved last, where no checkpoint is left; None where nothing is missing."""
        return None if self._record is None or self._paths() else _recorded(self._record)

    def forget(self) -> None:
        """Let the stage begin anew, although checkpoints of it are missing."""
        if self._record is not None:
            self._record.unlink(missing_ok=True)

    def newest_name(self) -> str | None:
        """Name of the newest visible checkpoint; it is not verified."""
        return next((path.name for path in self._paths()), None)

    def at(self, step: int) -> Path:
        """The checkpoint of ``step``.

        Raises:
            RLError: there is none, or it is damaged; the message lists those there are.
        """
        with self.reading(step) as path:
            assert path is not None
            return path

    def _at(self, step: int, stack: ExitStack) -> Path:
        if self._owner:
            self._put_back()
        path = self.folder / _name(step)
        have = ", ".join(str(_step(p)) for p in reversed(self._paths())) or "none"
        if not path.is_dir():
            raise RLError(f"there is no checkpoint of step {step} in {self.folder} (steps there: {have})")
        stack.enter_context(kept(path))
        problem = damage(path)
        if problem:
            raise RLError(f"checkpoint {path} is damaged: {problem}\n    choose another step with --step ({have})")
        self._require_place(path)
        return path

    def _require_place(self, path: Path) -> None:
        """Refuse a checkpoint whose folder was renamed, or moved here from another stage."""
        manifest = read_manifest(path)
        stage, step = manifest.stage, manifest.step
        if stage is None or step is None:
            state = read_state(path)
            stage, step = state.stage, state.step
            logger.warning(
                "checkpoint %s is of an older version: its manifest names no stage and no step; those of %s are taken",
                path,
                STATE,
            )
        if self._stage is not None and stage != self._stage:
            raise RLError(
                f"{path} is a checkpoint of stage {stage!r}, not of {self._stage!r}: it was moved here\n"
                "    move it back, and restore the one that belongs here"
            )
        if path.name != _name(step):
            raise RLError(
                f"{path} is the checkpoint of step {step}: the folder was renamed, or swapped with another\n"
                f"    give it its name again: {path.with_name(_name(step))}"
            )

    def _record_step(self, step: int) -> None:
        if self._record is None:
            return
        try:
            write_atomic(self._record, json.dumps({"step": step}) + "\n")
        except OSError as error:  # the checkpoint itself is there
            logger.warning("cannot write %s: %s", self._record, error.strerror or error)

    def _paths(self) -> list[Path]:
        """Visible checkpoints, newest first."""
        found = [p for p in self.folder.glob("step-*") if p.name[5:].isdecimal() and p.name.isascii()]
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
            with unread(paths[step]) as free:
                if free:
                    paths[step].rename(self.folder / f"{_REMOVED}{paths[step].name}-{uuid.uuid4().hex[:8]}")
        for prefix in (_REMOVED, _REPLACED, _TEMPORARY):
            for leftover in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)


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


def _recorded(file: Path) -> int | None:
    try:
        step = read_object(file).get("step")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise RLError(f"{file} is damaged: {problem}\n    remove it if the stage has checkpoints") from error
    if type(step) is not int:
        raise RLError(f"{file} is damaged: step must be a whole number, not {step!r}\n    write the last step there")
    return step


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _step(path: Path) -> int:
    return int(path.name[5:])
