"""Checks of the conformance kit that build configs and components."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from rl_core.component import Component
from rl_core.discovery.registry import load_registry
from rl_core.discovery.status import describe

from rl_plugin_kit.bad_values import check_bad_values
from rl_plugin_kit.inspection import components_of, config_model, label, resolve, run_apart, with_nested

Settings = Mapping[str, Mapping[str, Any]]
"""Component name, or ``kind/name`` where a package has two of one name → fields for its config."""

_UNPICKLE = """
import base64, json, pickle, sys
answers = []
for text in json.load(sys.stdin):
    try:
        answers.append(["", pickle.loads(base64.b64decode(text)).model_dump_json()])
    except Exception as error:
        answers.append([f"{type(error).__name__}: {error}", ""])
print("\\n" + json.dumps(answers))
"""


def check_unknown_keys(package: str) -> None:
    """Every config model, nested ones included, refuses keys it does not have: a typo must not pass silently."""
    for component in components_of(package):
        for model in with_nested(config_model(package, component)):
            assert model.model_config.get("extra") == "forbid", (
                f"{package}: {label(component)}: {model.__name__} accepts unknown keys, so a typo in the YAML would "
                "change nothing; derive it from rl_core.config.sections.Section"
            )


def check_refusals(package: str, settings: Settings | None = None) -> None:
    """Every config refuses values of a wrong type by naming the field; see :mod:`rl_plugin_kit.bad_values`."""
    for component in components_of(package):
        given = given_to(component, settings or {})
        check_bad_values(f"{package}: {label(component)}", config_model(package, component), component.name, given)


def check_pickling(package: str, settings: Settings | None = None) -> None:
    """Every config arrives unchanged in a fresh process, as it does in a worker."""
    sent: list[tuple[Component, BaseModel, str]] = []
    for component, config in _configs(package, settings or {}):
        try:
            sent.append((component, config, base64.b64encode(pickle.dumps(config)).decode()))
        except Exception as error:
            raise AssertionError(
                f"{package}: {label(component)}: its config cannot be pickled for a worker: {describe(error)}"
            ) from error
    if not sent:
        return
    done = run_apart(_UNPICKLE, given=json.dumps([text for _, _, text in sent]))
    assert done.returncode == 0, f"{package}: reading its configs in another process failed:\n{done.stderr.strip()}"
    answers = json.loads(done.stdout.splitlines()[-1])
    for (component, config, _), (problem, arrived) in zip(sent, answers, strict=True):
        assert not problem, f"{package}: {label(component)}: its config cannot be read in a worker: {problem}"
        assert arrived == config.model_dump_json(), (
            f"{package}: {label(component)}: its config arrives changed in a worker: {arrived}"
        )


def check_building_twice(package: str, settings: Settings | None = None) -> None:
    """Every factory builds twice in one process, because workers are reused between the stages of a run.

    A component whose ``imports`` are not installed is left out.
    """
    registry = load_registry()
    for component, config in _configs(package, settings or {}):
        if registry.missing_imports(component):
            continue
        factory = resolve(package, component, component.factory)
        for attempt in ("", " a second time in the same process"):
            try:
                built = factory(config)
            except Exception as error:
                raise AssertionError(
                    f"{package}: {label(component)}: building it{attempt} failed: {describe(error)}"
                ) from error
            if component.kind == "reward" and hasattr(built, "close"):
                built.close()


def given_to(component: Component, settings: Settings) -> Mapping[str, Any]:
    """The fields for one component."""
    return settings.get(f"{component.kind}/{component.name}", settings.get(component.name, {}))


def _configs(package: str, settings: Settings) -> Iterator[tuple[Component, BaseModel]]:
    """A config for every component that has one without further fields, or whose fields are in ``settings``."""
    for component in components_of(package):
        model = config_model(package, component)
        given = given_to(component, settings)
        required = {f.alias or name for name, f in model.model_fields.items() if f.is_required()} - {"name", *given}
        if required and not given:
            continue
        try:
            yield component, model(name=component.name, **given)
        except ValueError as error:
            raise AssertionError(
                f"{package}: {label(component)}: {model.__name__} cannot be built from "
                f"{'settings' if given else 'its defaults'}: {error}"
            ) from error
