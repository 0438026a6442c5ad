"""Errors of pydantic in plain words, with their line."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from rl_secrets.redaction import hide_secrets, is_secret

from rl_core.config.document import BrokenText, Node
from rl_core.config.findings import Findings, Path
from rl_core.config.suggest import closest, did_you_mean
from rl_core.config.yaml_rules import number_or_flag


def explain(error: ValidationError, node: Node, model: type[BaseModel], findings: Findings, *, what: str) -> None:
    """Report every error of ``error``, which came from validating ``node`` with ``model``.

    Args:
        what: how the section is called in messages: ``"algorithm 'grpo'"``.
    """
    grouped: dict[Path, list[tuple[Node, dict[str, Any]]]] = {}
    for details in error.errors(include_url=False):
        item: dict[str, Any] = dict(details)
        found, path = locate(node, item["loc"])
        if isinstance(found.value, BrokenText):
            continue
        if item["type"] == "missing" and isinstance(item["loc"][-1], str):
            path = (*path, item["loc"][-1])
        grouped.setdefault(path, []).append((found, item))
    for path, items in grouped.items():
        found, item = items[0]
        if item["type"] == "extra_forbidden":
            key = str(item["loc"][-1])
            fix = did_you_mean(key, keys_at(model, item["loc"][:-1]), listing="known keys")
            findings.add(found.where, path, f"unknown key {key!r} for {what}", fix=fix)
            continue
        if item["type"] == "missing" and isinstance(item["loc"][-1], int):
            findings.add(found.where, path, f"must have at least {item['loc'][-1] + 1} items")
            continue
        if item["type"] == "missing":
            findings.add(found.where, path, f"{what} needs the key {item['loc'][-1]!r}", fix=f"{item['loc'][-1]}: …")
            continue
        texts = list(dict.fromkeys(_expectation(entry) for _, entry in items))
        message = texts[0] + "".join(", or " + text.removeprefix("must be ") for text in texts[1:])
        secret = found.secret or any(is_secret(str(part)) for part in path)
        findings.add(
            found.where,
            path,
            message if secret else message + _found(item),
            fix="" if secret else _fix(item),
        )


def locate(node: Node, loc: tuple[str | int, ...]) -> tuple[Node, Path]:
    """The deepest node that ``loc`` leads to, and where it was written; branches of unions are passed over."""
    for part in loc:
        child = node.get(part)
        if child is not None:
            node = child
    return node, node.path


def keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys that are known where ``loc`` leads to inside ``model``."""
    models = [model]
    for part in loc:
        below = [m for owner in models for m in _models_of(owner, part)]
        models = below or models
    return list(dict.fromkeys(name for m in models for name in _names(m)))


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield info.alias or name


def _models_of(model: type[BaseModel], key: str | int) -> list[type[BaseModel]]:
    for name, info in model.model_fields.items():
        if key in (name, info.alias):
            return list(_models_in(info.annotation))
    return []


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


_SIMPLE = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number that fits 64 bits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "none_required": "must be null",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "mapping_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "dataclass_type": "must be a mapping of keys to values",
}
_WITH_LIMIT: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"must be more than {_number(c['gt'])}",
    "greater_than_equal": lambda c: f"must be at least {_number(c['ge'])}",
    "less_than": lambda c: f"must be less than {_number(c['lt'])}",
    "less_than_equal": lambda c: f"must be at most {_number(c['le'])}",
    "multiple_of": lambda c: f"must be a multiple of {_number(c['multiple_of'])}",
    "literal_error": lambda c: f"must be {c['expected']}",
    "enum": lambda c: f"must be {c['expected']}",
    "string_pattern_mismatch": lambda c: f"must match the pattern {c['pattern']}",
    "string_too_short": lambda c: f"must have at least {c['min_length']} characters",
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
    "too_short": lambda c: f"must have at least {c['min_length']} items",
    "too_long": lambda c: f"must have at most {c['max_length']} items",
    "union_tag_invalid": lambda c: f"{c['discriminator']} must be one of {c['expected_tags']}",
    "union_tag_not_found": lambda c: f"needs the key {c['discriminator']}",
}
_SPEAKS_FOR_ITSELF = ("value_error", "assertion_error", "union_tag_not_found")


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _expectation(item: dict[str, Any]) -> str:
    kind = item["type"]
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if kind in _WITH_LIMIT:
        return _WITH_LIMIT[kind](item.get("ctx", {}))
    if kind in ("value_error", "assertion_error"):
        return str(item["ctx"]["error"]) or "is not allowed"
    return item["msg"][:1].lower() + item["msg"][1:]


def _found(item: dict[str, Any]) -> str:
    value = item["input"]
    if item["type"] in _SPEAKS_FOR_ITSELF:
        return ""
    if isinstance(value, dict):
        return ", found a mapping"
    if isinstance(value, list | tuple):
        return f", found a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return f", found {({None: 'nothing (null)', True: 'true', False: 'false'})[value]}"
    text = hide_secrets(repr(str(value))) if isinstance(value, str) else _shown_number(value)
    return f", found {text if len(text) <= 80 else text[:77] + '…'}"


def _shown_number(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # more digits than Python writes down
        return "a number of thousands of digits"


_FLAG_WORDS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_FLAG_NUMBERS: dict[float, str] = {1: "true", 0: "false"}


def _fix(item: dict[str, Any]) -> str:
    value, kind = item["input"], item["type"]
    if kind == "bool_type" and isinstance(value, str | int | float):
        word = _FLAG_WORDS.get(value.lower()) if isinstance(value, str) else _FLAG_NUMBERS.get(value)
        return f"write {word}" if word else ""
    if kind in ("int_type", "float_type") and isinstance(value, str):
        digits = value.replace("_", "").replace(",", "").strip()
        return f"write {digits}" if number_or_flag(digits) != digits and not digits[-1].isalpha() else ""
    if kind == "string_type" and isinstance(value, int | float):
        return f'put it in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    if kind in ("list_type", "tuple_type") and isinstance(value, str | int | float):
        return f"write [{value}]"
    if kind in ("literal_error", "enum") and isinstance(value, str):
        options = [part.strip("' ") for part in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = closest(value, options)
        return f"did you mean {near!r}?" if near else ""
    return ""
