"""Did-you-mean: the closest of the names that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option most like ``name``, or None where nothing is close."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, options: Iterable[str], *, listing: str = "choose from") -> str:
    """A line for :attr:`Problem.fix`: the closest option, else all of them after ``listing``."""
    choices = list(options)
    near = closest(name, choices)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"{listing}: {', '.join(choices)}" if choices else ""
