"""Finding the files of a source and reading their bytes."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable

from rl_core.errors import DataError


def find_files(paths: Iterable[str]) -> list[str]:
    """The files that ``paths`` (names or globs, ``**`` included) stand for; a glob's files are sorted.

    Raises:
        DataError: a name that does not exist (near names in its folder are listed), a folder, or a
            glob without a match.
    """
    files: list[str] = []
    for path in paths:
        if os.path.isfile(path):
            files.append(path)
        elif glob.has_magic(path):
            found = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
            if not found:
                raise DataError(f"no file matches {path}")
            files.extend(found)
        elif os.path.isdir(path):
            raise DataError(
                f"{path} is a folder, not a file\n    name its files with a glob: {os.path.join(path, '*.jsonl')}"
            )
        else:
            raise DataError(_no_such_file(path))
    return files


def read_bytes(path: str) -> bytes:
    """The file's content, unzipped where its name ends in ``.gz``."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        return gzip.decompress(content) if path.endswith(".gz") else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file: {error}\n    check it: gzip -t {path}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def digest_file(path: str) -> str:
    """SHA-256 of the file as stored, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _no_such_file(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f"no such file: {path}\n    its folder {folder} does not exist"
    if os.path.lexists(path):
        return f"{path} is neither a file nor a folder (a broken link, a pipe or a device)"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        return f"no such file: {path}\n    its folder {folder} cannot be read: {error.strerror}"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"no such file: {path}\n    did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"no such file: {path}\n    the folder holds {shown or 'no files'}"
