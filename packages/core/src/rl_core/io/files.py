"""Regular files only: nothing here waits for a pipe, drives a device or follows a link to somewhere else."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open a regular file and return its descriptor; it never waits for the other end of a pipe.

    Args:
        dir_fd: descriptor of the folder that a relative ``path`` is in.

    Raises:
        OSError: it cannot be opened, or it is a link, a pipe, a socket, a device or a folder; ``strerror`` says which.
    """
    try:
        _require_regular(os.stat(path, dir_fd=dir_fd, follow_symlinks=False), path)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=dir_fd)
    try:
        _require_regular(os.fstat(file), path)  # it may have been replaced since it was looked at
    except OSError:
        os.close(file)
        raise
    return file


def read_regular(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> bytes:
    """Content of a regular file. Raises as :func:`open_regular`."""
    with os.fdopen(open_regular(path, dir_fd=dir_fd), "rb") as file:
        return file.read()


def write_atomic(path: Path, text: str, *, durable: bool = True, dir_fd: int | None = None) -> None:
    """Replace a file's content so that a crash leaves the old or the new text, never a mixture.

    Args:
        durable: False spares the fsync: a power cut may then lose the newest text.
        dir_fd: descriptor of the folder that a relative ``path`` is in, wherever that has been moved to.
    """
    temporary = path.with_name(path.name + ".tmp")
    with os.fdopen(_new_file(temporary, dir_fd), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a regular file.

    Raises:
        OSError: as :func:`open_regular`.
        ValueError: it holds no JSON object.
    """
    return parse_object(read_regular(path))


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that ``text`` is.

    Raises:
        ValueError: it is something else, or is nested too deeply to be read.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def special_files(folder: Path, *, without: frozenset[str] = frozenset()) -> Iterator[tuple[Path, str]]:
    """Pipes, sockets, devices, and links to outside of ``folder``, each with what it is.

    Args:
        without: folders directly in ``folder`` that are not looked into.
    """
    inside = os.path.realpath(folder)
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if os.path.commonpath([inside, target]) != inside:
                        yield Path(entry.path), f"a link to {target}"
                elif entry.is_dir(follow_symlinks=False):
                    if Path(entry.path).relative_to(folder).as_posix() not in without:
                        waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), kind_of(entry.stat(follow_symlinks=False).st_mode)


def kind_of(mode: int) -> str:
    """What a file is by its ``st_mode``, for a message."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def _require_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(found.st_mode)}, not a regular file", os.fspath(path))


def _new_file(path: Path, dir_fd: int | None) -> int:
    """What stands there already, a link or a pipe perhaps, is removed and not written into."""
    for _ in range(2):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(path, flags, 0o666, dir_fd=dir_fd)
        except FileExistsError:
            os.unlink(path, dir_fd=dir_fd)
    raise FileExistsError(errno.EEXIST, "another process is writing it", os.fspath(path))
