"""Functions that a config refers to: ``module:function`` or ``/folder/file.py:function``."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rl_core.config.paths import split_function_reference
from rl_core.config.suggest import closest, did_you_mean
from rl_core.errors import ConfigError


def load_function(ref: str) -> Callable[..., Any]:
    """Import the function that ``ref`` names.

    A file is imported once, under a name made from its path, and stays in ``sys.modules``, so that what it defines
    can be pickled within the process. Other processes call ``load_function`` themselves.

    Raises:
        ConfigError: the reference is malformed; the file, the module or the function does not exist; importing it
            failed; or it cannot be called.
    """
    try:
        where, name = split_function_reference(ref)
    except ValueError as error:
        raise ConfigError(f"function reference {error}") from None
    module = _load_file(where, ref) if where.endswith(".py") else _load_module(where, ref)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(_with_fix(f"{ref}: {where} has no function {name!r}", _functions_like(name, module)))
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            _with_fix(f"{ref}: {name!r} is {type(found).__name__}, not a function", _functions_like(name, module))
        )
    return found


def missing_function(ref: str) -> tuple[str, str] | None:
    """``(what is wrong, how to fix it)`` where a reference names nothing, as far as that shows without running it.

    For ``rl check``: a file is read and its top-level names are looked at; of a module only the top package.
    """
    where, name = split_function_reference(ref)
    if not where.endswith(".py"):
        top = where.partition(".")[0]
        found = top in sys.modules or importlib.util.find_spec(top) is not None
        fix = "install the package that has it, or name a file: path/to/file.py:function"
        return None if found else (f"there is no Python module {top!r}", fix)
    path = os.path.abspath(os.path.expanduser(where))
    if not os.path.isfile(path):
        return f"there is no file {path}", _files_like(path)
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{path}{f':{line}' if line else ''} is no Python: {error}", ""
    names, functions = _top_level_names(tree)
    if name.partition(".")[0] in names or "*" in names:
        return None
    fix = did_you_mean(name, sorted(functions), listing="it has") or "it defines nothing"
    return f"{path} has no {name!r}", fix


def _top_level_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Every name a module may bind at its top level, and those of its own public functions and classes."""
    names, functions = set(), set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            if not node.name.startswith("_"):
                functions.add(node.name)
            continue
        if isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting.extend(ast.iter_child_nodes(node))
    return names, functions


def _load_file(file: str, ref: str) -> ModuleType:
    path = os.path.abspath(os.path.expanduser(file))
    if not os.path.isfile(path):
        raise ConfigError(_with_fix(f"{ref}: there is no file {path}", _files_like(path)))
    digest = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:12]
    stem = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0])
    name = f"rl_core_user_{stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{ref}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(_failure(ref, path, error)) from error
    return module


def _load_module(name: str, ref: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            fix = "install the package that has it, or name a file: path/to/file.py:function"
            raise ConfigError(_with_fix(f"{ref}: there is no Python module {missing!r}", fix)) from error
        raise ConfigError(_failure(ref, name, error)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_failure(ref, name, error)) from error


def _failure(ref: str, where: str, error: BaseException) -> str:
    """What importing ``where`` died of, with the line in the user's file."""
    place = where
    for frame in traceback.extract_tb(error.__traceback__):
        if os.path.isabs(where) and frame.filename == where:
            place = f"{where}:{frame.lineno}"
    if isinstance(error, SyntaxError) and error.filename == where and error.lineno:
        place = f"{where}:{error.lineno}"
    text = " ".join(str(error).split())
    message = f"{ref}: importing it failed at {place}: {type(error).__name__}: {text}"
    if isinstance(error, ModuleNotFoundError):
        fix = f"install {error.name!r}, or put the folder that holds it on PYTHONPATH"
        return _with_fix(message, fix)
    return message


def _functions_like(name: str, module: ModuleType) -> str:
    own = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and not key.startswith("_") and value.__module__ == module.__name__
    ]
    return did_you_mean(name, sorted(own), listing="its functions are") or "it defines no functions"


def _files_like(path: str) -> str:
    try:
        names = sorted(name for name in os.listdir(os.path.dirname(path)) if name.endswith(".py"))
    except OSError:
        return f"the folder {os.path.dirname(path)} does not exist"
    near = closest(os.path.basename(path), names)
    return f"did you mean {os.path.join(os.path.dirname(path), near)!r}?" if near else ""


def _with_fix(message: str, fix: str) -> str:
    return f"{message}\n    {fix}" if fix else message
