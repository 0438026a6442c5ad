"""One rule for the plain values of every config model: a number, a flag or a text is taken for nothing else.

``true`` is no number, ``1`` is no flag and ``12`` is no text. Text that YAML would read as a number or a flag
stands for it, because environment variables arrive as text; ``1_000`` and ``yes`` do not. A number without a
fraction, such as ``1e3``, is a whole number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rl_core.config.yaml_rules import number_or_flag

LARGEST_WHOLE_NUMBER = 2**63 - 1
"""What an int64 holds; seeds, counts and sizes end up in numpy and torch."""
_EXACT_FLOAT = 2.0**53
"""Up to here every float without a fraction is the number that was written."""

_DATA = frozenset(("default", "expected", "metadata", "members", "serialization"))
"""Keys of a core schema under which no schema stands."""
_OTHER_THAN_FLAGS = frozenset(("decimal", "complex", "date", "time", "datetime", "timedelta", "bytes", "enum"))
_LIKE_MODELS = frozenset(("model", "dataclass", "typed-dict"))


def exact_scalars(schema: CoreSchema, handler: GetCoreSchemaHandler, *, done: Callable[[Any], bool]) -> CoreSchema:
    """``schema`` of a model, with the rule of this module for every plain value in it.

    Models that are pydantic's own (no :class:`rl_core.config.section.Section`) validate themselves and are left alone.

    Args:
        handler: finds what a reference in the schema stands for.
        done: whether the schema of a nested model follows the rule already.
    """

    def follow(node: Any, may_be_text: bool) -> Any:
        if isinstance(node, list | tuple):
            return type(node)(follow(item, may_be_text) for item in node)
        if not isinstance(node, dict):
            return node
        kind = node.get("type")
        if not isinstance(kind, str):  # no schema but a mapping of names to schemas; "type" may be one of the names
            return {key: follow(value, may_be_text) for key, value in node.items()}
        if kind in _LIKE_MODELS and done(node.get("cls")):
            return node
        plain = handler.resolve_ref_schema(node)["type"] if kind == "definition-ref" else kind  # type: ignore[arg-type]
        if plain in _OTHER_THAN_FLAGS:
            return _before(_no_flag, node)
        if kind == "str" or (kind in _EXACT and may_be_text):  # where text may stand as well, text is no number
            return {**node, "strict": True}
        if kind in _EXACT:
            return _before(_EXACT[kind], {**node, "strict": True})
        if kind == "literal":
            return _before(_literal(node["expected"]), node)
        if kind == "union":
            may_be_text = may_be_text or any(choice.get("type") == "str" for choice in _choices(node))
        elif kind not in ("nullable", "default") and not kind.startswith("function-"):
            may_be_text = False  # a list, a mapping: what is in them stands elsewhere
        return {key: value if key in _DATA else follow(value, may_be_text) for key, value in node.items()}

    return follow(schema, False)


def _choices(union: Any) -> list[Any]:
    return [choice[0] if isinstance(choice, tuple) else choice for choice in union["choices"]]


def _before(function: Callable[[Any], Any], node: Any) -> CoreSchema:
    return core_schema.no_info_before_validator_function(function, node)


def _whole_number(value: Any) -> Any:
    value = number_or_flag(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT:
        value = int(value)
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE_NUMBER:
        raise PydanticCustomError("int_parsing_size", "must be a whole number that fits 64 bits")
    return value


def _literal(expected: list[Any]) -> Callable[[Any], Any]:
    """``true`` equals 1 in Python, and so would be a ``Literal[1]``."""
    shown = ", ".join(map(repr, expected))

    def check(value: Any) -> Any:
        if isinstance(value, bool) and not any(value is option for option in expected):
            raise PydanticCustomError("literal_error", "must be {expected}", {"expected": shown})
        return value

    return check


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("flag", "must not be true or false")
    return value


_EXACT: dict[str, Callable[[Any], Any]] = {
    "int": _whole_number,
    "float": number_or_flag,
    "bool": number_or_flag,
}
"""Type of plain value → what is done to a value before it has to be of exactly this type."""
