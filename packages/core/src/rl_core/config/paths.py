"""Config values that name files: relative ones start at the file (or the folder) they were written in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, WithJsonSchema

_NAME_BYTES = 255
_PATH_BYTES = 4095


class SourceText(str):
    """A string from a config that knows the folder its relative paths start from.

    Attributes:
        base: absolute path; the folder of the YAML file, or the working directory for the command line.
    """

    base: str

    def __new__(cls, value: str, base: str) -> SourceText:
        text = super().__new__(cls, value)
        text.base = base
        return text

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


@dataclass(frozen=True)
class NamesFunction:
    """Marks values that name a function of the user's."""


@dataclass(frozen=True)
class HoldsModel:
    """Marks a type whose values are model folders or hub ids; see :func:`model_paths`."""


_MODULE_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def absolute(value: str) -> str:
    """``value`` as an absolute path, from its base (:class:`SourceText`) or the working directory.

    ``~`` is expanded; addresses such as ``s3://…`` stay as they are. Nothing is checked on disk.
    """
    if "://" in value:
        return str(value)
    base = value.base if isinstance(value, SourceText) else os.getcwd()
    return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


def _config_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("the path is empty")
    return _possible(absolute(value))


def _possible(path: str) -> str:
    """``path``; a ValueError says why no file system has it."""
    if "\0" in path:
        raise ValueError("the path holds a NUL character")
    longest = max((os.fsencode(name) for name in path.split("/")), key=len)
    if len(longest) > _NAME_BYTES and "://" not in path:
        raise ValueError(f"a name in the path has {len(longest)} bytes; file systems take {_NAME_BYTES}")
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise ValueError(f"the path has {len(os.fsencode(path))} bytes; systems take {_PATH_BYTES}")
    return path


def _model_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("the path is empty")
    local = value.startswith(("/", "./", "../", "~")) or value in (".", "..")
    try:
        local = local or os.path.isdir(absolute(value))
    except ValueError:  # a null byte
        local = False
    return _possible(absolute(value) if local else str(value))


def split_function_reference(reference: str) -> tuple[str, str]:
    """``"module:function"`` or ``"file.py:function"`` in two; a ValueError tells what is expected."""
    where, colon, function = reference.rpartition(":")
    is_file = where.endswith(".py")
    if not colon or not _MODULE_FUNCTION.fullmatch(function) or not (is_file or _MODULE_FUNCTION.fullmatch(where)):
        raise ValueError(f"must be 'module:function' or 'file.py:function', found {str(reference)!r}")
    return where, function


def _function_reference(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    where, function = split_function_reference(value)
    if not where.endswith(".py"):
        return str(value)
    file = SourceText(where, value.base) if isinstance(value, SourceText) else where
    return f"{_possible(absolute(file))}:{function}"


ConfigPath = Annotated[str, BeforeValidator(_config_path), WithJsonSchema({"type": "string", "format": "path"})]
"""A file or folder; becomes an absolute path. Whether it exists is not checked."""

HubPath = Annotated[str, BeforeValidator(_model_path)]
"""A local folder or a hub id. It is a folder where it begins with ``/``, ``./``, ``../`` or ``~`` or exists as
one; folders become absolute, hub ids stay as they are."""

ModelPath = Annotated[HubPath, HoldsModel()]
"""A :data:`HubPath` to a model with weights. ``rl check`` looks into its folder, wherever in a config it stands."""

FunctionRef = Annotated[str, BeforeValidator(_function_reference), NamesFunction()]
"""A Python function as ``module:function`` or ``file.py:function``; the file becomes absolute.
:func:`rl_isolation.functions.load_function` imports it, ``rl check`` tries to."""


def model_paths(section: BaseModel) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Key and value of every :data:`ModelPath` that a validated section sets, in the sections below it as well."""
    return _marked(section, HoldsModel)


def function_references(section: BaseModel) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Key and value of every :data:`FunctionRef` that a validated section sets, in the sections below it as well."""
    return _marked(section, NamesFunction)


def _marked(section: BaseModel, mark: type) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        marked = any(isinstance(one, mark) for one in info.metadata) or _marks(info.annotation, mark)
        for key, one in _leaves(value, (info.alias or name,)):
            if isinstance(one, BaseModel):
                yield from (((*key, *below), text) for below, text in _marked(one, mark))
            elif marked and isinstance(one, str):
                yield key, one


def _marks(annotation: Any, mark: type) -> bool:
    """Whether a type is marked, or one of those that it is made of (``ModelPath | None``, ``list[ModelPath]``)."""
    parts = (*getattr(annotation, "__metadata__", ()), *get_args(annotation))
    return any(isinstance(part, mark) or _marks(part, mark) for part in parts)


def _leaves(value: Any, key: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping):
        inner: Any = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    else:
        yield key, value
        return
    for part, one in inner:
        yield from _leaves(one, (*key, part))
