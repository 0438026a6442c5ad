"""Shared parts of the comparing rewards: the row's answer, and the part of a completion to compare."""

from __future__ import annotations

import difflib
import re
from numbers import Rational, Real
from typing import Any

from rl_core.contracts.reward import Sample
from rl_core.errors import DataError

from rl_reward_rule.numbers import exact_number


def answer_of(sample: Sample, column: str, reward: str) -> Any:
    """The value of the answer column.

    Raises:
        DataError: the row has no such column, or null in it.
    """
    row = sample.row
    value = row.get(column)
    if value is None:
        columns = [str(name) for name in row if not str(name).startswith("__")]
        near = difflib.get_close_matches(column, [name for name in columns if name != column], n=1)
        found = f"{column!r} is null" if column in row else f"there is no column {column!r}"
        hint = f"; did you mean {near[0]!r}?" if near and column not in row else ""
        raise DataError(
            f"{place_of(sample)}: {found}, which reward {reward!r} compares with{hint}"
            f" (columns: {', '.join(columns)})\n"
            "    map it in the data section (answer: <column>), or set the reward's answer to one of the columns"
        )
    return value


def text_of(sample: Sample, column: str, reward: str) -> str:
    """The answer column as text: text itself, numbers in decimal digits, dates and times as ISO 8601, flags.

    Raises:
        DataError: there is no answer, or it has no one text: a list, a mapping, bytes, a number that is not finite, a
            float that people write in several ways (5.0 and 5, 1e-07 and 0.0000001).
    """
    value = answer_of(sample, column, reward)
    if isinstance(value, str):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bool) or exact_number(value) is not None:
        try:
            text = str(value)
        except ValueError:  # more digits than Python writes down
            text = ""
        if text and not (_is_float(value) and re.search(r"\.0$|e", text)):
            return text
        if text:
            raise DataError(
                f"{place_of(sample)}: the answer is the float {text}, which a completion may write in several ways; "
                f"reward {reward!r} compares text\n"
                "    compare numbers with the reward numeric, or make the column text or whole numbers"
            )
    raise DataError(
        f"{place_of(sample)}: the answer is a {type(value).__name__}, which reward {reward!r} cannot compare with "
        "text\n"
        "    make it text in the data (answer: <template>), or leave the row out"
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, Rational)


def extract(pattern: re.Pattern[str] | None, text: str) -> str | None:
    """The first group (or all) of the pattern's last match, None without a match; all of ``text`` without a pattern."""
    if pattern is None:
        return text
    last = None
    for match in pattern.finditer(text):
        last = match
    if last is None:
        return None
    return (last.group(1) or "") if pattern.groups else last.group()


def place_of(sample: Sample) -> str:
    """``file:line`` of the sample's row, as far as known."""
    return str(sample.row.get("__where__", "a data row"))
