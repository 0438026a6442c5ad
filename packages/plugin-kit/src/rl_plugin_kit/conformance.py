"""What every plugin package must satisfy, as functions and as a test class to subclass.

::

    from rl_plugin_kit.conformance import PluginConformance

    class TestPlugin(PluginConformance):
        package = "rl-algo-grpo"

The functions take the distribution name, raise ``AssertionError`` with a text that names the
package and the offender, and do not need pytest.
"""

from __future__ import annotations

import importlib
import inspect
import json
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from rl_core import hookspecs
from rl_core.config import sections
from rl_core.config.environment import EnvironmentConfig
from rl_core.discovery.registry import load_registry
from rl_core.discovery.status import describe

from rl_plugin_kit.building import check_building_twice, check_pickling, check_refusals, check_unknown_keys
from rl_plugin_kit.inspection import (
    components_of,
    config_model,
    label,
    lax_models,
    resolve,
    run_apart,
    statuses,
    with_nested,
)

__all__ = [
    "CONFIG_BASES",
    "HEAVY_FOR_CONFIG",
    "HEAVY_FOR_PLUGIN",
    "PluginConformance",
    "check_building_twice",
    "check_config_bases",
    "check_config_round_trips",
    "check_discovery",
    "check_field_descriptions",
    "check_hook_signatures",
    "check_json_schemas",
    "check_light_configs",
    "check_light_import",
    "check_pickling",
    "check_references",
    "check_refusals",
    "check_unknown_keys",
    "components_of",
]

HEAVY_FOR_PLUGIN = ("torch", "transformers", "ray", "vllm", "pydantic")
"""Modules that importing a plugin's light module must not import."""

HEAVY_FOR_CONFIG = ("torch", "transformers", "ray", "vllm")
"""Modules that importing a config model must not import."""

CONFIG_BASES: dict[str, type[sections.ComponentConfig]] = {
    "algorithm": sections.AlgorithmConfig,
    "backend": sections.BackendConfig,
    "generator": sections.GeneratorConfig,
    "environment": EnvironmentConfig,
    "reward": sections.RewardConfig,
    "evaluator": sections.EvaluatorConfig,
}
"""Kind → the model its configs derive from, because the core reads those fields; others: ``ComponentConfig``."""


class PluginConformance:
    """Subclass it in a test module and set ``package``; pytest runs every check.

    Attributes:
        package: the distribution's name.
        settings: component name → fields for its config, for the checks that build it. Without them a component
            whose config has required fields is left out of those checks.
    """

    package: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def test_plugin_is_discovered(self) -> None:
        check_discovery(self.package)

    def test_importing_the_plugin_module_is_light(self) -> None:
        check_light_import(self.package)

    def test_importing_the_config_models_is_light(self) -> None:
        check_light_configs(self.package)

    def test_references_resolve(self) -> None:
        skipped = check_references(self.package)
        if skipped:
            pytest.skip("not checked: " + "; ".join(skipped))

    def test_config_models_have_the_right_base(self) -> None:
        check_config_bases(self.package)

    def test_every_config_field_is_described(self) -> None:
        check_field_descriptions(self.package)

    def test_config_models_have_a_json_schema(self) -> None:
        check_json_schemas(self.package)

    def test_config_defaults_survive_a_round_trip(self) -> None:
        check_config_round_trips(self.package)

    def test_configs_refuse_unknown_keys(self) -> None:
        check_unknown_keys(self.package)

    def test_bad_values_are_refused_by_name(self) -> None:
        check_refusals(self.package, self.settings)

    def test_configs_can_be_sent_to_another_process(self) -> None:
        check_pickling(self.package, self.settings)

    def test_components_can_be_built_twice_in_one_process(self) -> None:
        check_building_twice(self.package, self.settings)

    def test_hook_implementations_have_no_default_arguments(self) -> None:
        check_hook_signatures(self.package)


def check_discovery(package: str) -> None:
    """Every entry point of the package is found, imports, and registers."""
    for plugin in statuses(load_registry(), package):
        assert plugin.status == "ok", f"{package}: plugin {plugin.name!r} is {plugin.status}: {plugin.reason}"


def check_light_import(package: str) -> None:
    """Importing the plugin module imports none of :data:`HEAVY_FOR_PLUGIN`: every ``rl`` command imports it."""
    for plugin in statuses(load_registry(), package):
        _assert_light(package, plugin.module, HEAVY_FOR_PLUGIN, "move the import into the factory's module")


def check_light_configs(package: str) -> None:
    """Importing what ``rl check`` imports, config models and memory estimates, imports none of
    :data:`HEAVY_FOR_CONFIG`.
    """
    components = components_of(package)
    for module in sorted({component.config.partition(":")[0] for component in components}):
        _assert_light(package, module, HEAVY_FOR_CONFIG, "a config module imports pydantic and rl_core.config only")
    for module in sorted({one.memory_estimate.partition(":")[0] for one in components} - {""}):
        _assert_light(package, module, HEAVY_FOR_CONFIG, "memory is estimated from sizes alone, without a model")


def check_references(package: str) -> tuple[str, ...]:
    """Every factory, config and memory estimate can be imported; factories and estimates can be called.

    Returns:
        what could not be checked because a module in ``Component.imports`` is not installed.
    """
    registry = load_registry()
    skipped = []
    for component in components_of(package):
        config_model(package, component)
        if estimate := component.memory_estimate:
            is_function = callable(resolve(package, component, estimate))
            assert is_function, f"{package}: {label(component)}: memory_estimate {estimate!r} is not callable"
        missing = registry.missing_imports(component)
        if missing:
            skipped.append(f"{label(component)} needs {', '.join(missing)}")
            continue
        factory = resolve(package, component, component.factory)
        assert callable(factory), f"{package}: {label(component)}: factory {component.factory!r} is not callable"
    return tuple(skipped)


def check_config_bases(package: str) -> None:
    """Every config model derives from ``ComponentConfig``, or the base of its kind (:data:`CONFIG_BASES`).

    Models in its fields derive from ``Section``: pydantic's own, dataclasses and tuples take ``true`` for 1.
    """
    for component in components_of(package):
        model = config_model(package, component)
        base = CONFIG_BASES.get(component.kind, sections.ComponentConfig)
        assert issubclass(model, base), (
            f"{package}: {label(component)}: {component.config!r} must derive from {base.__module__}.{base.__name__}"
        )
        for holder, field, lax in lax_models(model):
            raise AssertionError(
                f"{package}: {label(component)}: {lax.__name__}, of the field {holder.__name__}.{field}, would take "
                "true for 1 and 1_000 for 1000; derive it from rl_core.config.sections.Section"
            )


def check_field_descriptions(package: str) -> None:
    """Every field of every config model, nested ones included, has a description."""
    for component in components_of(package):
        for model in with_nested(config_model(package, component)):
            for name, field in model.model_fields.items():
                assert field.description, (
                    f"{package}: {label(component)}: field {model.__name__}.{name} has no description; "
                    "give it one with Field(description=...)"
                )


def check_json_schemas(package: str) -> None:
    """Every config model has a JSON schema (``rl schema``)."""
    for component in components_of(package):
        model = config_model(package, component)
        try:
            json.dumps(model.model_json_schema())
        except Exception as error:
            raise AssertionError(
                f"{package}: {label(component)}: {model.__name__} has no JSON schema: {error}"
            ) from error


def check_config_round_trips(package: str) -> None:
    """Every default is a valid value of its field, and a model of defaults is equal after a trip through JSON.

    The trip carries the fields that were set, as the run directory's ``config.yaml`` does. It is left
    out for a model with required fields.
    """
    for component in components_of(package):
        model = config_model(package, component)
        for one in with_nested(model):
            _check_defaults(f"{package}: {label(component)}", one)
        if any(field.is_required() for name, field in model.model_fields.items() if name != "name"):
            continue
        try:
            built = model(name=component.name)
            json.loads(built.model_dump_json())
            again = model.model_validate_json(built.model_dump_json(exclude_unset=True))
        except ValueError as error:  # pydantic's validation and serialization errors are ValueErrors
            raise AssertionError(
                f"{package}: {label(component)}: {model.__name__} cannot be built from its defaults: {error}"
            ) from error
        assert again == built, f"{package}: {label(component)}: {model.__name__} changes on a trip through JSON"


def _check_defaults(where: str, model: type[BaseModel]) -> None:
    # Field by field: a model may refuse a key that has no effect as soon as it is spelled out.
    for name, field in model.model_fields.items():
        if field.is_required():
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        try:
            allowed: TypeAdapter[typing.Any] = TypeAdapter(
                typing.Annotated[field.annotation, *field.metadata, None]  # type: ignore[arg-type]
            )
            allowed.validate_python(default)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise AssertionError(
                f"{where}: the default of {model.__name__}.{name} is {default!r}, which is not valid: {reason}"
            ) from error
        except PydanticUserError:  # a type without a schema of its own, allowed by the model's own settings
            continue


def check_hook_signatures(package: str) -> None:
    """No hook implementation gives an argument a default: pluggy would then never pass that argument."""
    for plugin in statuses(load_registry(), package):
        try:
            module = importlib.import_module(plugin.module)
        except Exception as error:
            raise AssertionError(f"{package}: importing {plugin.module} failed: {describe(error)}") from error
        for name, function in vars(module).items():
            if not callable(function) or not hasattr(function, f"{hookspecs.PROJECT}_impl"):
                continue
            for parameter in inspect.signature(function).parameters.values():
                assert parameter.default is parameter.empty, (
                    f"{package}: hook {name} gives its argument {parameter.name!r} a default, "
                    "so it would always get the default; remove it"
                )


def _assert_light(package: str, module: str, heavy: tuple[str, ...], advice: str) -> None:
    """Import ``module`` in a fresh interpreter and see which of ``heavy`` came with it."""
    code = (
        "import importlib, json, sys; before = set(sys.modules); importlib.import_module(sys.argv[1]); "
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = run_apart(code, module)
    assert done.returncode == 0, f"{package}: importing {module} failed:\n{done.stderr.strip()}"
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    found = [name for name in heavy if name in imported]
    assert not found, f"{package}: importing {module} imports {', '.join(found)}; {advice}"
