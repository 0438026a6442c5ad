"""Which YAML is read and written: the core types of YAML 1.2, and nothing that runs code.

``1e-3`` is a number; ``yes``, ``12:30`` and dates are text. Anchors, aliases and ``<<`` merges work.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
MAX_DIGITS = 1000
"""Most characters of a number; Python itself stops at 4,300 digits."""
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_RULES = (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)


class YamlLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class-level table)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _RULES:
    _whole = re.compile(rf"^(?:{_pattern.pattern})$")
    YamlLoader.add_implicit_resolver(TAG + _name, _whole, _first)
    _Dumper.add_implicit_resolver(TAG + _name, _whole, _first)
YamlLoader.add_implicit_resolver(TAG + "merge", re.compile(r"^<<$"), ["<"])


def dump_yaml(data: Any) -> str:
    """``data`` (mappings, lists, scalars) as YAML that reads back as the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def scalar_value(tag: str, text: str) -> Any:
    """The value of a scalar; a LookupError for a tag that is none of YAML's core types."""
    if tag == "str":
        return text
    pattern = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT, "merge": None}[tag]
    if pattern is None:
        return text
    if not pattern.fullmatch(text):
        raise ValueError(text)
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if len(text) > MAX_DIGITS:
        raise OverflowError(f"a number of more than {MAX_DIGITS} characters")
    if tag == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    value = float(re.sub(r"\.(inf|nan)", r"\1", text, flags=re.IGNORECASE))
    mantissa = re.split("[eE]", text)[0]
    if (math.isinf(value) and text[-1].isdigit()) or (value == 0 and mantissa.strip("-+0.")):
        raise OverflowError("a number that no float64 holds")
    return value


def number_or_flag(value: Any) -> Any:
    """What YAML reads a text as, where that is a number or true or false; else ``value`` itself."""
    if not isinstance(value, str):
        return value
    for tag, pattern in (("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
        if pattern.fullmatch(value):
            try:
                return scalar_value(tag, str(value))
            except OverflowError:
                return value
    return value
