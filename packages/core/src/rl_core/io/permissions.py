"""Who may reach a run directory: ``run.permissions``, whatever the umask that a command was started with.

A run's processes have a umask of their own, so that files are right from the moment they exist. ``group`` sets the
setgid bit on folders: what is made in them belongs to the folder's group.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

Permissions = Literal["private", "group"]

FOLDER: Mapping[Permissions, int] = {"private": 0o700, "group": 0o2770}
FILE: Mapping[Permissions, int] = {"private": 0o600, "group": 0o660}
SECRET_FILE = 0o600
SECRET_FILES = frozenset({"secrets.json"})
"""Names of files that are their owner's alone in every mode."""

_in_force: int | None = None


@contextmanager
def run_folder(folder: Path, permissions: Permissions | None) -> Iterator[None]:
    """Make ``folder`` where there is none, and have what this process writes within the block fit it.

    The umask is that of the whole process. Where the folder cannot be made, whoever writes into it says so.

    Args:
        permissions: None: ``private`` for a new folder; what an existing one has.
    """
    global _in_force
    with contextlib.suppress(OSError, ValueError):
        folder.parent.mkdir(parents=True, exist_ok=True)  # with the umask of the user
        folder.mkdir(mode=0o700)
        folder.chmod(FOLDER[permissions or "private"])  # mkdir obeys the umask, and knows no setgid bit
    before = _in_force
    _in_force = _umask_for(folder, permissions)
    umask = os.umask(_in_force)
    try:
        yield
    finally:
        os.umask(umask)
        _in_force = before


def umask_in_force() -> int | None:
    """The umask of the :func:`run_folder` block that this process is in, for its workers; None outside of one."""
    return _in_force


def apply_permissions(folder: Path, permissions: Permissions | None) -> None:
    """Give everything in a run directory its mode; None leaves it as it is. Links are not followed."""
    if permissions is None:
        return
    refused = []
    for path in [folder, *_below(folder)]:
        wanted = FOLDER[permissions] if path.is_dir() else FILE[permissions]
        if path.name in SECRET_FILES:
            wanted = SECRET_FILE
        try:
            if stat.S_IMODE(path.lstat().st_mode) != wanted:
                path.chmod(wanted)
        except FileNotFoundError:
            continue
        except OSError:
            refused.append(path)
    if refused:
        example, count = refused[0], len(refused)
        logger.warning("run.permissions: the mode of %d files cannot be changed, such as that of %s", count, example)


def write_secret_file(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file that its owner alone may read, from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, SECRET_FILE)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, SECRET_FILE)
            json.dump(content, file)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _umask_for(folder: Path, permissions: Permissions | None) -> int:
    if permissions is not None:
        return ~FOLDER[permissions] & 0o777
    try:
        return ~stat.S_IMODE(folder.stat().st_mode) & 0o777
    except (OSError, ValueError):
        return ~FOLDER["private"] & 0o777


def _below(folder: Path) -> Iterator[Path]:
    """Files and folders, not links and what they lead to, nor sockets and pipes."""
    for inside, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(inside, name)
            with contextlib.suppress(OSError):
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                    yield path
