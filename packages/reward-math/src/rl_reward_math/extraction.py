"""Finding the marked answer in a completion, and the answer of a row."""

from __future__ import annotations

import re
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

_BOX_OR_BRACE = re.compile(
    # Two backslashes: text that was escaped once too often. \{ and \} are characters, not braces.
    r"\\{1,2}(?:boxed|fbox)(?:(?P<box>\s*\{)|[ \t]+(?P<bare>[\w.,+\-/]+))|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
_MOST_DIGITS = 4000
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")


def marked_answer(text: str) -> str | None:
    r"""What the last ``\boxed{…}`` holds, else the rest of the line after the last ``####``, else None.

    A box whose brace is never closed (a completion that was cut) does not count. Takes time linear
    in the length of the text.
    """
    answer = _last_box(text)
    return answer if answer is not None else _last_hashes(text)


def gold_answer(value: Any) -> str | None:
    r"""The answer of a row: of text the marked answer, or all of it without a marker; of a number (Python's,
    numpy's or a Decimal) its digits.

    None where there is no answer in it: null, empty text, a number that is not finite or has thousands of digits,
    another type.
    """
    if isinstance(value, str):
        answer = marked_answer(value)
        return (value if answer is None else answer).strip() or None
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        value = Decimal(int(value))
    elif isinstance(value, Real):
        value = Decimal(repr(float(value)))
    if not isinstance(value, Decimal) or not value.is_finite() or abs(value.adjusted()) > _MOST_DIGITS:
        return None
    return format(value, "f")


def _last_box(text: str) -> str | None:
    found: tuple[int, str] | None = None
    opened: list[int | None] = []  # per open brace: where the content starts if it is a box
    for match in _BOX_OR_BRACE.finditer(text):
        box: tuple[int, str] | None = None
        if match["box"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["bare"]:
            box = match.start("bare"), match["bare"]
        elif match["close"] and opened:
            start = opened.pop()
            # A box around a box holds the same answer: the inner one starts later and stays.
            box = None if start is None or (found and found[0] > start) else (start, text[start : match.start()])
        found = box or found
    return found[1].strip() if found else None


def _last_hashes(text: str) -> str | None:
    last = None
    for match in _HASHES.finditer(text):
        last = match[1].strip() or last
    return last
