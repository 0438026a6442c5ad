"""JSON Schema of the config file, made of everything installed: completion and checking in editors."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rl_core.config.compose import LISTS, REQUIRED, STAGE_SECTIONS
from rl_core.config.run_section import RunSection
from rl_core.config.sections import BackendConfig, ModelConfig
from rl_core.config.select import AUTO, KIND_OF, describe_error

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registered, Registry

logger = logging.getLogger(__name__)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
INTERPOLATED = {"type": "string", "pattern": r"\$\{", "description": "a text with ${…}, filled in before it is checked"}
_ABOUT = ("title", "description", "default", "examples", "deprecated")


def json_schema(registry: Registry) -> dict[str, Any]:
    """A JSON Schema (2020-12) for config files.

    A component section is a ``oneOf`` over the installed components, distinguished by ``name``. In a file that has
    ``extends`` or ``stages``, and in a stage, sections may be partial, because they are merged. A component whose
    config model cannot be imported is left out with a warning.
    """
    definitions: dict[str, Any] = {}
    for section in STAGE_SECTIONS:
        full = _section(section, registry, definitions)
        definitions[f"section.{section}"] = full
        definitions[f"partial.{section}"] = _partial(section, full)
    partial = {section: _reference(f"partial.{section}") for section in STAGE_SECTIONS}
    definitions["interpolated"] = INTERPOLATED
    definitions["stage"] = {
        "type": "object",
        "description": "One stage; its sections are merged over those at the top of the file.",
        "properties": {"name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$"}, **partial},
        "required": ["name"],
        "additionalProperties": False,
    }
    return {
        "$schema": DIALECT,
        "title": "Config of an rl run",
        "type": "object",
        "properties": {
            "extends": {
                "description": "Files this one builds on; later ones win, and this file wins over all.",
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            },
            "stages": {
                "description": "Stages that run one after the other.",
                "anyOf": [{"type": "array", "items": _reference("stage"), "minItems": 1}, {"type": "null"}],
            },
            **partial,
        },
        "additionalProperties": False,
        "if": {"anyOf": [{"required": ["extends"]}, {"required": ["stages"]}]},
        "else": {
            "properties": {section: _optional(section) for section in STAGE_SECTIONS},
            "required": list(REQUIRED),
        },
        "$defs": definitions,
    }


def _optional(section: str) -> dict[str, Any]:
    reference = _reference(f"section.{section}")
    return reference if section in REQUIRED else {"anyOf": [reference, {"type": "null"}]}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _section(section: str, registry: Registry, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a complete section."""
    if section in ("model", "run"):
        return _model_schema(ModelConfig if section == "model" else RunSection, section, definitions)
    kind = KIND_OF[section]
    variants = []
    offered = registry.components(kind)
    for registered in offered:
        rivals = sum(one.component.name == registered.component.name for one in offered) - 1
        variant = _component_schema(registered, registry, definitions, rivals=rivals)
        if variant is not None:
            variants.append(variant)
    if kind == "backend" and variants:
        variants.append(_auto_schema(definitions))
    one = {"oneOf": variants} if variants else {"not": {}, "description": f"no {kind} is installed"}
    return {"type": "array", "items": one} if section in LISTS else one


def _component_schema(
    registered: Registered, registry: Registry, definitions: dict[str, Any], *, rivals: int
) -> dict | None:
    """``rivals``: how many other packages offer the name; where there are any, only ``package/name`` selects it."""
    component = registered.component
    try:
        model: Any = registry.resolve(component.config)
        schema = _model_schema(model, f"{registered.package}.{component.kind}.{component.name}", definitions)
    except Exception as error:  # noqa: BLE001 - the plugin boundary: one broken package must not hide the others
        logger.warning(
            "%s %r of package %s is left out of the schema: %s",
            component.kind,
            component.name,
            registered.package,
            describe_error(error),
        )
        return None
    qualified = f"{registered.package}/{component.name}"
    names = [qualified] if rivals else [component.name, qualified]
    name = {"enum": names, "description": component.summary}
    schema["properties"] = {"name": name, **{k: v for k, v in schema.get("properties", {}).items() if k != "name"}}
    schema["required"] = list(dict.fromkeys(["name", *schema.get("required", ())]))
    schema["title"] = f"{component.kind.replace('_', ' ')} {component.name}"
    return schema


def _auto_schema(definitions: dict[str, Any]) -> dict[str, Any]:
    """``backend: {name: auto}``: fields of whichever backend is chosen are allowed."""
    schema = _model_schema(BackendConfig, "auto", definitions)
    name = {"const": AUTO, "description": "The installed backend that rates the job best (`rl check` shows why)."}
    schema["properties"] = {**schema["properties"], "name": name}
    return {**schema, "title": "backend auto", "additionalProperties": True}


def _model_schema(model: type[BaseModel], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The model's own schema; what it refers to moves to ``definitions`` under ``prefix``."""
    schema = model.model_json_schema(by_alias=True, ref_template=f"#/$defs/{prefix}.{{model}}")
    for name, definition in schema.pop("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = _or_interpolated(definition)
    return _or_interpolated(schema)


def _or_interpolated(schema: Any) -> Any:
    """``schema`` in which numbers, choices and texts of a certain form may also be written as ``${…}``."""
    if isinstance(schema, list):
        return [_or_interpolated(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "enum" in schema or schema.get("type") in ("integer", "number", "boolean") or "pattern" in schema:
        about = {key: schema[key] for key in _ABOUT if key in schema}
        rule = {key: value for key, value in schema.items() if key not in _ABOUT}
        return {**about, "anyOf": [rule, _reference("interpolated")]}
    return {key: value if key in _ABOUT else _or_interpolated(value) for key, value in schema.items()}


def _partial(section: str, full: dict[str, Any]) -> dict[str, Any]:
    """A section that will be merged: only ``name`` tells the variants apart and no key is required."""
    if section in LISTS:
        return {"anyOf": [_reference(f"section.{section}"), {"type": "null"}]}
    if "oneOf" not in full:
        relaxed = copy.deepcopy(full)
        relaxed.pop("required", None)
        return {"anyOf": [relaxed, {"type": "null"}]} if "not" not in full else {"type": ["object", "null"]}
    variants = [{**copy.deepcopy(variant), "required": ["name"]} for variant in full["oneOf"]]
    unnamed = {
        "title": "keys merged into the section of the same name",
        "type": "object",
        "not": {"required": ["name"]},
    }
    return {"oneOf": [*variants, unnamed, {"type": "null"}]}
