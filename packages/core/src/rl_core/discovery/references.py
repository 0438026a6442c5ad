"""Importing ``"package.module:Name"`` references, and saying what to install where that fails."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from rl_core.component import Component
from rl_core.discovery.status import describe
from rl_core.errors import EnvironmentProblem


def missing_imports(component: Component) -> tuple[str, ...]:
    """The top-level modules among ``component.imports`` that are not installed; nothing is imported."""
    names = dict.fromkeys(name.partition(".")[0] for name in component.imports)
    return tuple(name for name in names if not _is_importable(name))


def _is_importable(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # noqa: BLE001 - importing a parent package runs its code
        return False


def resolve_reference(reference: str, *, package: str = "") -> object:
    """Import what ``"package.module:Name"`` points to (``Name`` may be dotted).

    Args:
        reference: the module and the attribute in it.
        package: the distribution that gave the reference, for messages; empty for the user's own code.

    Raises:
        EnvironmentProblem: it cannot be imported; names the package, what is missing and the pip command.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise EnvironmentProblem(f"{reference!r} is not a reference of the form 'package.module:Name'")
    owner = f"{package}: " if package else ""
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(_missing(reference, error.name or module_name, package)) from error
    except (Exception, SystemExit) as error:
        advice = f"pip install --upgrade {package}" if package else "fix the module, then run again"
        raise EnvironmentProblem(f"{owner}importing {module_name} failed: {describe(error)}\n    {advice}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            advice = f"\n    pip install --upgrade {package}" if package else ""
            raise EnvironmentProblem(f"{owner}module {module_name!r} has no {attribute!r}{advice}")
        found = getattr(found, part)
    return found


def install_command(module: str, *, package: str = "") -> str:
    """The pip command that brings the top-level ``module``, as ``package``'s own requirements word it."""
    wanted = canonicalize_name(module)
    for line in requirements_of(package):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != wanted:
            continue
        extra = _extra(line)
        target = f"{package}[{extra}]" if extra else f"{requirement.name}{requirement.specifier}"
        return f'pip install "{target}"'
    return f"pip install {module}"


def _missing(reference: str, missing: str, package: str) -> str:
    module_name = reference.partition(":")[0]
    top = missing.partition(".")[0]
    if not package:
        advice = "run rl from the folder that holds the module, or add that folder to PYTHONPATH"
        if top != module_name.partition(".")[0]:
            return f"{reference} needs the module {missing!r}, which is not installed\n    pip install {top}"
        return f"cannot import {reference!r}: no module named {missing!r}\n    {advice}"
    if top == module_name.partition(".")[0]:
        return (
            f"{package}: {reference!r} cannot be imported: no module named {missing!r}\n"
            f"    pip install --force-reinstall {package}"
        )
    return (
        f"{package}: {reference} needs the module {missing!r}, which is not installed\n"
        f"    {install_command(top, package=package)}"
    )


def requirements_of(package: str) -> tuple[str, ...]:
    """The ``Requires-Dist`` lines of a distribution; none where it is not installed or cannot be read."""
    try:
        return tuple(importlib.metadata.requires(package) or ()) if package else ()
    except Exception:  # noqa: BLE001 - it is not installed, or its metadata cannot be read
        return ()


def _extra(line: str) -> str:
    """The extra that guards a requirement line, or an empty string."""
    _, _, after = line.partition("extra ==")
    return after.strip().split()[0].strip("'\")") if after.strip() else ""
