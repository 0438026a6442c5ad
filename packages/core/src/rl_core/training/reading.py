"""Readers of a checkpoint, and whoever removes it: `rl export` may read what a run that goes on wants to remove.

Both lock the manifest, readers together, the remover alone. It is a file, which NFS locks as well.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl_core.io.files import open_regular
from rl_core.training.manifest import MANIFEST


class Vanished(Exception):
    """A checkpoint was removed between its discovery and its reading."""


@contextmanager
def kept(checkpoint: Path) -> Iterator[None]:
    """While the block lasts, nobody removes the checkpoint.

    Raises:
        Vanished: it is gone already.
    """
    try:
        file = open_regular(checkpoint / MANIFEST)
    except OSError:
        if not checkpoint.is_dir():
            raise Vanished from None
        yield  # it is damaged, which its reader finds out
        return
    try:
        if not _lock(file, fcntl.LOCK_SH) or not _is_there(file, checkpoint):
            raise Vanished
        yield
    finally:
        os.close(file)


@contextmanager
def unread(checkpoint: Path) -> Iterator[bool]:
    """Whether nobody reads the checkpoint; if so, nobody begins to while the block lasts."""
    try:
        file = open_regular(checkpoint / MANIFEST, os.O_RDWR)
    except OSError:
        yield True
        return
    try:
        yield _lock(file, fcntl.LOCK_EX)
    finally:
        os.close(file)


def _lock(file: int, kind: int) -> bool:
    """False where another process has it; True also where the file system has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_there(file: int, checkpoint: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(checkpoint / MANIFEST))
    except OSError:
        return False
