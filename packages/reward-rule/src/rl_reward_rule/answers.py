"""What the comparing rewards share: the row's answer, and the part of a completion to compare."""

from __future__ import annotations

import difflib
import re
from typing import Any

from rl_core.contracts.reward import Sample
from rl_core.errors import DataError


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
