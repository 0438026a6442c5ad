"""Config values that are lengths of time: ``3h50m``, ``90s``, or a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms]\s*)+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def seconds(text: str) -> float:
    """``"3h50m"`` → 13800.0.

    Raises:
        ValueError: it is no duration.
    """
    if not _DURATION.fullmatch(text.strip()):
        raise ValueError(f"must be a time such as 3h50m, 45m or 90s, or a number of seconds; found {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _duration(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
"""Seconds, written as a number or as ``3h50m``."""
