"""Column mapping: from the columns a file has to the columns with a meaning (``prompt``, ``completion``, …).

A mapping is a column name (``question``; ``dialog.0.text`` reaches into objects and lists) or a
template with placeholders (``"Q: {question}\\nA:"``; ``{{`` and ``}}`` are literal braces).
"""

from __future__ import annotations

import datetime
import difflib
import math
import string
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

CANONICAL = (
    "prompt",
    "completion",
    "answer",
    "messages",
    "chosen",
    "rejected",
    "label",
    "tools",
    "chat_template_kwargs",
)
"""Columns with a meaning, in the order they are mapped."""

Getter = Callable[[Mapping[str, Any]], Any]


class BadRow(Exception):
    """Why a row cannot be used; the source adds where it is."""


def compile_mapping(key: str, spec: str) -> Getter:
    """A function from a raw row to the value of canonical column ``key``; it raises :class:`BadRow`."""
    if "{" not in spec and "}" not in spec:
        return lambda row: look_up(row, spec, key)
    return _compile_template(key, spec)


def look_up(row: Mapping[str, Any], name: str, key: str) -> Any:
    """The value of column ``name``; a dotted name that is no column walks into objects and lists."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise BadRow(missing_column(row, name, key))
    return value


def missing_column(row: Mapping[str, Any], name: str, key: str) -> str:
    """``no column 'questoin' for 'prompt'; did you mean 'question'? (columns: …)``."""
    near = difflib.get_close_matches(name, [str(k) for k in row], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no column {name!r} for {key!r}{hint} (columns: {', '.join(map(str, row)) or 'none'})"


def _compile_template(key: str, spec: str) -> Getter:
    parts = [(literal, name) for literal, name, _, _ in string.Formatter().parse(spec)]

    def render(row: Mapping[str, Any]) -> str:
        out = []
        for literal, name in parts:
            out.append(literal)
            if name is not None:
                out.append(_as_text(look_up(row, name, key), name, key))
        return "".join(out)

    return render


def _as_text(value: Any, name: str, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        found = "a number that is not finite" if is_number else kind_of(value)
        raise BadRow(f"column {name!r} in the template of {key!r} is {found}, not text")
    try:
        return str(value)
    except ValueError:
        raise BadRow(f"column {name!r} in the template of {key!r} is a number of thousands of digits") from None


def kind_of(value: Any) -> str:
    """The JSON word for a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Real | Decimal):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"
