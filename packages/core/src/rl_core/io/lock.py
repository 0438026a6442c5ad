"""The lock that keeps a second process out of a run directory.

Two locks are taken: one on the folder itself, and one on ``.lock`` inside it. The first holds where somebody removes
the file; the second is what NFS has, which locks no folders. Both end with the process, however it ends. Across
machines they hold as far as the file system's ``flock`` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from rl_core.errors import ConfigError, EnvironmentProblem
from rl_core.io.files import open_regular

LOCK = ".lock"

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_ATTEMPTS = 5
"""How often a folder may be removed and made again between its opening and its locking."""


class FolderLock:
    """A folder that is open and locked; :attr:`fd` stays with it wherever it is moved."""

    def __init__(self, path: Path, fd: int, file: int) -> None:
        self.path = path
        self.fd = fd
        self._file = file

    @classmethod
    def take(cls, path: Path, *, make: bool = False) -> FolderLock:
        """Lock the folder at ``path``.

        Args:
            make: it may be missing and is made then.

        Raises:
            ConfigError: another process has it.
            EnvironmentProblem: the file system has no locks.
            OSError: it is missing or cannot be written.
        """
        for _ in range(_ATTEMPTS):
            if make:
                path.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            file = -1
            try:
                _lock_folder(fd, path)
                file = open_regular(LOCK, os.O_RDWR | os.O_CREAT, dir_fd=fd)
                _lock_file(file, path)
                if is_at(fd, path) and _is_same(file, fd):
                    return cls(path, fd, file)
            except FileNotFoundError:  # removed since it was opened
                pass
            except BaseException:
                _close(file, fd)
                raise
            _close(file, fd)
        raise EnvironmentProblem(f"{path} is removed and made again by another process; try again when that has ended")

    def lost(self) -> tuple[str, str | None] | None:
        """What has become of the folder (``was moved …``), and its new path if that is known; None: it is in place."""
        if is_at(self.fd, self.path):
            return None
        place = _path_of(self.fd)
        if place is not None and place != str(self.path):
            return f"was moved to {place}", place
        return ("was replaced by another one" if self.path.exists() else "was removed"), None

    def release(self) -> None:
        """Let others have it."""
        _close(self._file, self.fd)
        self._file = self.fd = -1


def is_at(fd: int, path: Path) -> bool:
    """Whether the open folder ``fd`` is the one at ``path`` now; True where the file system does not answer."""
    try:
        held, there = os.fstat(fd), os.stat(path)
    except OSError as error:
        return error.errno not in _GONE
    return os.path.samestat(held, there)


def _lock_folder(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path) from None
    except OSError:
        pass  # NFS and its kin lock files only


def _lock_file(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be locked: {error.strerror or error}; its file system has no flock\n"
            "    mount it with locks (Lustre: the option flock), or choose another place with run.directory=PATH"
        ) from error


def _busy(path: Path) -> ConfigError:
    return ConfigError(f"another process is running in {path}\n    see: rl runs {path.parent}")


def _is_same(file: int, fd: int) -> bool:
    return os.path.samestat(os.fstat(file), os.stat(LOCK, dir_fd=fd, follow_symlinks=False))


def _path_of(fd: int) -> str | None:
    """Where an open folder is now, or None: it is removed, or the system does not tell."""
    try:
        place = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    return place if is_at(fd, Path(place)) else None


def _close(*descriptors: int) -> None:
    for one in descriptors:
        if one >= 0:
            os.close(one)
