"""Who may reach a run directory: ``run.permissions``, whatever the umask that a command was started with.

A run's processes have a umask of their own, so that files are right from the moment they exist. ``group`` sets the
setgid bit on folders: what is made in them belongs to the folder's group.
"""

from __future__ import annotations

import contextlib
import errno
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
    for path, directory, name in _entries(folder):
        wanted = SECRET_FILE if name in SECRET_FILES else FILE[permissions]
        try:
            _set_mode(name, directory, folder_mode=FOLDER[permissions], file_mode=wanted)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link or a socket
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


def _entries(folder: Path) -> Iterator[tuple[Path, int | None, str]]:
    """``(path, descriptor of the folder it is in, name in it)`` of ``folder`` and all in it; no link is followed."""
    yield folder, None, str(folder)
    with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile, which the run notices by itself
        for inside, folders, files, directory in os.fwalk(folder):
            for name in (*folders, *files):
                yield Path(inside, name), directory, name


def _set_mode(name: str, directory: int | None, *, folder_mode: int, file_mode: int) -> None:
    """Open and change one thing, so that nobody who may write there can put a link in its place in between."""
    no_links = os.O_NOFOLLOW if directory is not None else 0
    opened = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | no_links, dir_fd=directory)
    try:
        mode = os.fstat(opened).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return
        wanted = folder_mode if stat.S_ISDIR(mode) else file_mode
        if stat.S_IMODE(mode) != wanted:
            os.fchmod(opened, wanted)
    finally:
        os.close(opened)
