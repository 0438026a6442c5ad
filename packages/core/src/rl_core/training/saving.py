"""Saving a stage's models into its checkpoints while training goes on, and continuing from one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.errors import RLError, StorageError
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.state import RunState, read_state

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.model import Model

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves the trained models; the workers may write in the background, and a full disk does not end training.

    A checkpoint becomes visible when all of it is written: at :meth:`publish_written`, or before the next one begins.

    Args:
        models: all roles; those that are trained are saved.
        published: told the step and the folder of each checkpoint once it is visible.
    """

    def __init__(
        self, store: CheckpointStore, models: Mapping[str, Model], *, published: Callable[[int, str], None]
    ) -> None:
        self._store = store
        self._trained = {name: model for name, model in models.items() if model.role.trainable}
        self._published = published
        self._unpublished: int | None = None  # the step whose checkpoint is being written in the background

    @property
    def writing(self) -> bool:
        """Whether a checkpoint was begun and is not visible yet."""
        return self._unpublished is not None

    def save(self, state: RunState, *, wait: bool) -> bool:
        """Begin the checkpoint of a step, and publish it if it is written at once or ``wait`` is set.

        Returns:
            whether it is written, or being written; a warning says why it is not.
        """
        self._publish()
        with training_goes_on(self._store) as attempt:
            self._store.begin(state, self._write)
            self._unpublished = state.step
        if not attempt.succeeded:
            with contextlib.suppress(StorageError):  # of what other roles began to write in the background
                self._finish_writing()
        elif wait or not self._is_being_written():
            return self._publish()
        return attempt.succeeded

    def publish_written(self) -> None:
        """Publish a checkpoint that was written in the background, once it is complete."""
        if self.writing and not self._is_being_written():
            self._publish()

    def _publish(self) -> bool:
        """Wait for the checkpoint that is being written, if there is one, and publish it; False if that failed."""
        if self._unpublished is None:
            return True
        step, self._unpublished = self._unpublished, None
        with training_goes_on(self._store) as attempt:
            self._finish_writing()
            path = self._store.commit(step)
        if attempt.succeeded:
            self._published(step, str(path))
        return attempt.succeeded

    def _write(self, folder: Path) -> None:
        for name, model in self._trained.items():
            target = folder / name
            target.mkdir()
            model.save(str(target))

    def _is_being_written(self) -> bool:
        return next(iter(self._trained.values())).is_saving()  # a worker answers for all of its roles

    def _finish_writing(self) -> None:
        next(iter(self._trained.values())).finish_saving()


def restore(path: Path, models: Mapping[str, Model], algorithm: Algorithm, *, name: str) -> RunState:
    """Give the trained models and the algorithm (called ``name``) what the checkpoint ``path`` has of them.

    Raises:
        RLError: a file is damaged, or the algorithm cannot continue from its state.
    """
    state = read_state(path)
    for role, model in models.items():
        if model.role.trainable:
            model.restore(str(path / role))
    try:
        algorithm.load_state(state.algorithm)
    except RLError:
        raise
    except Exception as error:
        raise RLError(
            f"algorithm {name!r} cannot continue from its state in {path}: {type(error).__name__}: {error}\n"
            "    install the version that wrote it (plugins.json), or start a new run"
        ) from error
    return state


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
