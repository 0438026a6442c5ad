"""Where a Ray of our own keeps its session: a folder that only this user can enter, removed at the end.

A process that is killed leaves its folder; the next one that makes a folder removes it. A lock tells which are in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

from rl_ray.errors import RayProblem

SOCKET_NAME_BYTES = 103
"""Longest name of a Unix socket on every system (Linux: 107)."""
_OF_A_SESSION = len("/r1/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store")
_SHORT = "/tmp"
_PREFIX = "rl-ray-"
_LOCK = "lock"
_UNLOCKED_S = 60.0
"""A folder without a lock that is older was left by a process that was killed before it had made one."""


class RayFolder:
    """A folder of mode 0700 in the temporary folder, in use while somebody holds ``locks``.

    Where the name of the temporary folder is too long for Ray's sockets, a link in ``/tmp`` stands for it: the files
    stay where they belong.

    Attributes:
        path: the folder, by a name that is short enough.
        locks: descriptors of locked files; a child that inherits them keeps the folder in use.

    Raises:
        RayProblem: the temporary folder cannot be used; names the variable that chose it.
    """

    def __init__(self) -> None:
        root, variable = _root()
        named = f"the temporary folder {root}" + (f" ({variable})" if variable else "")
        self._made: list[Path] = []
        self.locks: list[int] = []
        self.path = self._make(root)
        if len(os.fsencode(self.path)) + _OF_A_SESSION > SOCKET_NAME_BYTES:
            target = self.path
            try:
                self.path = self._make(_SHORT) / "t"
                self.path.symlink_to(target, target_is_directory=True)
            except OSError as error:
                self.remove()
                raise RayProblem(
                    f"the name of {named} is too long for Ray's sockets, and no link to it can be made in {_SHORT}: "
                    f"{error.strerror}\n    export {variable or 'TMPDIR'}=/a/short/one"
                ) from error

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        while self._made:
            shutil.rmtree(self._made.pop(), ignore_errors=True)
        while self.locks:
            os.close(self.locks.pop())

    def _make(self, root: str) -> Path:
        sweep(root)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._made.append(folder)
        # Locked before it has its name: whoever looks for folders that nobody uses never sees it unlocked.
        descriptor = os.open(folder / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(folder / "new", folder / _LOCK)
        self.locks.append(descriptor)
        return folder


def in_use(folder: Path) -> bool:
    """Whether a process holds the lock of a :class:`RayFolder`."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_ray_folder(folder: Path) -> bool:
    """Whether that is the path of a :class:`RayFolder`, whether or not it is there still."""
    linked = folder.name == "t" and folder.parent.parent == Path(_SHORT)
    return (
        folder.is_absolute()
        and ".." not in folder.parts
        and (folder.parent if linked else folder).name.startswith(_PREFIX)
    )


def remove_folder(folder: Path) -> None:
    """Remove what another process's :class:`RayFolder` made."""
    if folder.is_symlink():
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder = folder.parent
    shutil.rmtree(folder, ignore_errors=True)


def sweep(root: str) -> None:
    """Remove this user's folders in ``root`` that nobody uses any more."""
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and _is_abandoned(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if not (folder / _LOCK).exists():
            return time.time() - found.st_mtime > _UNLOCKED_S
    except OSError:
        return False
    return not in_use(folder)


def _root() -> tuple[str, str]:
    """The temporary folder, and the variable that chose it."""
    variables = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)  # what Ray looks at
    variable = next((name for name in variables if os.environ.get(name)), "")
    root = os.path.abspath(os.environ[variable]) if variable else _SHORT
    if not (os.path.isdir(root) and os.access(root, os.W_OK | os.X_OK)):
        what = "cannot be written" if os.path.isdir(root) else "does not exist"
        named = f"the temporary folder {root}" + (f" ({variable})" if variable else "")
        raise RayProblem(f"{named} {what}, and Ray needs it\n    export {variable or 'TMPDIR'}=/tmp")
    return root, variable
