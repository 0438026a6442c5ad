"""Files that others wrote: read without hanging, and whatever they raise becomes an error that names them."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rl_core.errors import EnvironmentProblem, RLError

MAX_JSON_BYTES = 64 * 2**20
"""Of a JSON file about a model. The largest index of a published model has 30 MB."""

MAX_TOKENIZER_BYTES = 512 * 2**20
"""Of a ``tokenizer.json``; Gemma's has 33 MB."""

MAX_JSON_DEPTH = 64

_COPY_AGAIN = "copy or download it again"


@contextmanager
def foreign(path: str | os.PathLike[str], *, what: str = "the model", fix: str = _COPY_AGAIN) -> Iterator[None]:
    """The boundary around code that reads ``path``, a folder or hub id that came from elsewhere.

    Errors that explain themselves pass, as do out-of-memory errors of a device.

    Args:
        what: names ``path`` in messages.
        fix: what to do about it.

    Raises:
        EnvironmentProblem: anything else was raised inside of the block; the message names ``path``.
    """
    try:
        yield
    except RLError as error:
        head, line, rest = str(error).partition("\n")
        named = os.fspath(path) in str(error)
        if named and line:
            raise
        raise type(error)(
            f"{head if named else f'{what} {os.fspath(path)}: {head}'}\n{rest or f'    {fix}'}"
        ) from error
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise _problem(path, error, what=what, fix=fix) from error
    except BaseException as error:
        # How a panic in a library written in Rust arrives; it derives from BaseException alone.
        if type(error).__name__ != "PanicException":
            raise
        raise _problem(path, error, what=what, fix=fix) from error


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file; nothing else is opened for reading, so nothing can block.

    Raises:
        EnvironmentProblem: it is a pipe, a device or a folder, it is larger than ``max_bytes``, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise EnvironmentProblem(f"{os.fspath(path)} has {size:,} bytes; at most {max_bytes:,} are read")
        return file.read(max_bytes)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A regular file, opened for reading bytes.

    Raises:
        EnvironmentProblem: it is something else, or cannot be opened.
    """
    name = os.fspath(path)
    try:
        # Opening a pipe would wait for a writer; O_NONBLOCK changes nothing for files.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"cannot open {name}: {getattr(error, 'strerror', None) or error}") from error
    with os.fdopen(descriptor, "rb") if _is_regular(descriptor) else _refused(descriptor, name) as file:
        yield file


def read_json(path: str | os.PathLike[str], *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        EnvironmentProblem: see :func:`read_bytes`; or it is no JSON, or nested deeper than ``MAX_JSON_DEPTH``.
    """
    name, data = os.fspath(path), read_bytes(path, max_bytes=max_bytes)
    if data.startswith(b"\xef\xbb\xbf"):
        raise EnvironmentProblem(f"{name} starts with a byte order mark\n    save it as UTF-8 without one")
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise EnvironmentProblem(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise EnvironmentProblem(f"{name} is not JSON: {error}") from error
    if _depth(value) > MAX_JSON_DEPTH:
        raise EnvironmentProblem(f"{name} is nested too deeply: more than {MAX_JSON_DEPTH} levels")
    return value


def read_json_object(path: str | os.PathLike[str], *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Like :func:`read_json`, for a file that holds an object."""
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise EnvironmentProblem(f"{os.fspath(path)} does not hold an object, but {_kind(value)}")
    return value


def _kind(value: object) -> str:
    known = {type(None): "null", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return known.get(type(value), "a number")


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _refused(descriptor: int, name: str) -> Any:
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"
    raise EnvironmentProblem(f"{name} is {kind}, not a file")


def _depth(value: object) -> int:
    """Levels of lists and objects inside of one another; stops one level past the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_JSON_DEPTH:
        inner = [one for one in level if isinstance(one, list | dict)]
        level = [item for one in inner for item in (one.values() if isinstance(one, dict) else one)]
        depth += bool(inner)
    return depth


def _problem(path: str | os.PathLike[str], error: BaseException, *, what: str, fix: str) -> EnvironmentProblem:
    text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).strip()
    lines = [line.rstrip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    shown = " ".join(lines[:4])
    shown = shown if len(shown) <= 600 else f"{shown[:600]} …"
    explains_itself = isinstance(error, OSError | RecursionError) or type(error) is ValueError
    reason = shown if explains_itself else f"{type(error).__name__}: {shown}"
    if isinstance(error, ImportError):
        fix = _install(error)
    return EnvironmentProblem(f"cannot read {what} {os.fspath(path)}: {reason}\n    {fix}")


def _install(error: ImportError) -> str:
    """What to do about a package that is missing: the files are not to blame."""
    named = re.search(r"pip install ([\w.\[\]-]+)", str(error))
    package = named[1].rstrip(".") if named else error.name
    return f"pip install {package}" if package else "install the package that it needs, and try again"
