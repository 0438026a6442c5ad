"""Reference pages of config sections: every option with its type, default and description, from the JSON schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rl_core.component import KINDS

from docs_site.inventory import Offer, offers

TITLES = {kind: kind.replace("_", " ").capitalize() + "s" for kind in KINDS}
SECTION_OF = {"data_source": "data", "reward": "rewards", "evaluator": "evaluators", "logger": "loggers"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Option:
    """One field of a config model; ``name`` has the sections above it: ``optimizer.schedule``."""

    name: str
    type: str
    default: str
    description: str


def pages() -> dict[str, str]:
    """Path below the documentation → Markdown: one page a kind, and one for the sections of the core."""
    found = {"reference/run-and-model.md": _core_page()}
    for kind, title in TITLES.items():
        own = [offer for offer in offers() if offer.component.kind == kind]
        found[f"reference/{kind.replace('_', '-')}s.md"] = _page(kind, title, own)
    return found


def options(model: Any) -> list[Option]:
    """Every option of a pydantic model, those of nested sections included."""
    schema = model.model_json_schema(by_alias=True)
    return list(_options(schema, schema.get("$defs", {}), prefix=""))


def _page(kind: str, title: str, found: list[Offer]) -> str:
    section = SECTION_OF.get(kind, kind)
    lines = [f"# {title}", f"What the section `{section}` of a config can name.", ""]
    if not found:
        lines.append("No package of this repository offers one.")
    for offer in found:
        one = offer.component
        lines += [
            f"## `{one.name}`",
            f"{one.summary.rstrip('.')}. From [{offer.package}](../packages/{offer.package}.md).",
            "",
        ]
        if one.needs:
            lines += [f"Needs the sections {_names(one.needs)}.", ""]
        if one.uses:
            lines += [f"Reads as well, if they are there: {_names(one.uses)}.", ""]
        lines += [*_table([o for o in options(offer.config()) if o.name != "name"]), ""]
    return "\n".join(lines)


def _core_page() -> str:
    from rl_core.config.run_section import RunSection
    from rl_core.config.sections import ModelConfig

    lines = ["# Run and model", "The two sections that the core reads itself.", ""]
    for section, model in (("run", RunSection), ("model", ModelConfig)):
        lines += [f"## `{section}`", str(model.__doc__), "", *_table(options(model)), ""]
    return "\n".join(lines)


def _names(sections: tuple[str, ...]) -> str:
    return ", ".join(f"`{section}`" for section in sections)


def _table(found: list[Option]) -> list[str]:
    rows = [[f"`{o.name}`", o.type, o.default, o.description] for o in found]
    if not rows:
        return ["It has no options."]
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in row] for row in rows]
    return ["| option | type | default | |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Option]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else _default(field)
        description = field.get("description", "")
        yield Option(prefix + name, _type(field, definitions), default, description)
        for nested in _sections(field, definitions):
            yield from _options(nested, definitions, f"{prefix}{name}.")


def _sections(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The models that a field holds, one or a list of them."""
    if "$ref" in field:
        found = definitions[field["$ref"].rpartition("/")[2]]
        if "properties" in found:
            yield found
    inner = [*field.get("anyOf", ()), *field.get("oneOf", ()), *([field["items"]] if "items" in field else [])]
    for one in inner:
        yield from _sections(one, definitions)


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default", "")
    if value == "" or isinstance(value, Mapping):
        return "`{}`" if value == {} else ""
    words = {None: "null", True: "true", False: "false"}
    plain = isinstance(value, bool) or value is None
    return f"`{words[value] if plain else value}`"


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A schema in words: ``whole number ≥ 1``, ``a or b``, ``list of texts``."""
    if "$ref" in field:
        found = definitions[field["$ref"].rpartition("/")[2]]
        return "section" if "properties" in found else _type(found, definitions)
    if values := field.get("enum") or ([field["const"]] if "const" in field else None):
        return " or ".join(f"`{value}`" for value in values)
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(choice, definitions) for choice in choices))
    kind = field.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(_type({**field, "type": one}, definitions) for one in kind)
    if kind == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_type(item, definitions) for item in field['prefixItems'])}]"
        return f"list of {_type(field.get('items', {}), definitions)}"
    words = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`", "object": "mapping"}
    bounds = [f"{sign} {field[key]:g}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join([words.get(kind, kind), ", ".join(bounds)]).strip()
