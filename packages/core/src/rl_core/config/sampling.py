"""Fields of configs that say how completions are drawn, for generators and for evaluators that ask them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

LOWEST_TEMPERATURE = 1e-5
"""Below it logits divided by the temperature leave float32, and the most likely token is all there is anyway."""


def _useful(strings: tuple[str, ...]) -> tuple[str, ...]:
    for index, string in enumerate(strings):
        if not string:
            raise ValueError(
                "a stop string cannot be empty: every completion would end with its first token; remove it"
            )
        if string in strings[:index]:
            raise ValueError(f"the stop string {string!r} is given twice; remove one")
    return strings


def _not_too_low(temperature: float) -> float:
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"must be at least {LOWEST_TEMPERATURE:g}, or 0 for the most likely token where that is possible"
        )
    return temperature


StopStrings = Annotated[tuple[str, ...], AfterValidator(_useful)]
"""Strings that end a completion: each once, none empty."""

Temperature = Annotated[float, AfterValidator(_not_too_low)]
"""A sampling temperature that float32 can divide logits by; the field says whether 0 is allowed."""
