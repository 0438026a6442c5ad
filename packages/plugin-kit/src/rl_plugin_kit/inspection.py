"""Looking into an installed plugin package: what the checks of the conformance kit share."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import BaseModel
from rl_core import hookspecs
from rl_core.component import Component
from rl_core.config.section import Section
from rl_core.discovery.registry import PluginStatus, Registry, load_registry
from rl_core.errors import EnvironmentProblem


def components_of(package: str) -> tuple[Component, ...]:
    """What the package offers, whether or not it could be registered completely."""
    return tuple(c for plugin in statuses(load_registry(), package) for c in plugin.components)


def statuses(registry: Registry, package: str) -> list[PluginStatus]:
    found = [plugin for plugin in registry.plugins if plugin.package == canonicalize_name(package)]
    assert found, (
        f"{package}: no entry point in the group {hookspecs.ENTRY_POINT_GROUP!r} is installed; "
        "check [project.entry-points] in pyproject.toml and install the package"
    )
    return found


def resolve(package: str, component: Component, reference: str) -> Any:
    try:
        return load_registry().resolve(reference)
    except EnvironmentProblem as error:
        raise AssertionError(f"{package}: {label(component)}: {error}") from error


def run_apart(code: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python ``code`` in a fresh interpreter that finds what this one does; ``given`` is its standard input."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=given,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )


def config_model(package: str, component: Component) -> type[BaseModel]:
    model = resolve(package, component, component.config)
    is_model = isinstance(model, type) and issubclass(model, BaseModel)
    assert is_model, f"{package}: {label(component)}: {component.config!r} is not a pydantic model"
    return model


def with_nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and every model its fields hold, each once."""
    seen: set[type[BaseModel]] = set()
    waiting: list[Any] = [model]
    while waiting:
        one = waiting.pop()
        waiting.extend(typing.get_args(one))
        if isinstance(one, type) and issubclass(one, BaseModel) and one not in seen:
            seen.add(one)
            yield one
            waiting.extend(field.annotation for field in one.model_fields.values())


def lax_models(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, type]]:
    """``(model, field, class)`` of each class in the fields of a model that holds values but is no ``Section``."""
    for holder in with_nested(model):
        for name, field in holder.model_fields.items():
            waiting: list[Any] = [field.annotation]
            while waiting:
                one = waiting.pop()
                waiting.extend(typing.get_args(one))
                if isinstance(one, type) and _holds_values(one) and not issubclass(one, Section):
                    yield holder, name, one


def _holds_values(one: type) -> bool:
    is_typed_dict = hasattr(one, "__required_keys__")  # typing.is_typeddict does not know those of typing_extensions
    is_named_tuple = issubclass(one, tuple) and hasattr(one, "_fields")
    return issubclass(one, BaseModel) or dataclasses.is_dataclass(one) or is_typed_dict or is_named_tuple


def label(component: Component) -> str:
    return f"{component.kind.replace('_', ' ')} {component.name!r}"
