"""Conditions on a stage's last metrics: ``eval/accuracy >= 0.9``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator

_FORM = re.compile(r"\s*(\S+)\s*(>=|<=|>|<)\s*(\S+)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def parse_gate(text: str) -> tuple[str, str, float]:
    """``(metric, comparison, bound)``.

    Raises:
        ValueError: the text is not ``METRIC >= NUMBER`` (or ``<=``, ``>``, ``<``).
    """
    match = _FORM.fullmatch(text)
    try:
        if match is not None:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a condition; write for example 'eval/accuracy >= 0.9'")


def gate_failure(text: str, metrics: Mapping[str, float]) -> str | None:
    """Why the condition does not hold for ``metrics``, or None."""
    metric, comparison, bound = parse_gate(text)
    value = metrics.get(metric)
    if value is None:
        return f"{text}: the stage logged no metric {metric!r}"
    return None if _COMPARE[comparison](value, bound) else f"{text}: it is {value:.6g}"


def _check(text: str) -> str:
    parse_gate(text)
    return text


Gate = Annotated[str, AfterValidator(_check)]
"""A condition as text, checked for its form."""
