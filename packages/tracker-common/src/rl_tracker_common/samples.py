"""Sample rows as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rl_secrets.redaction import hide_patterns

Value = str | int | float | bool | None


def sample_table(step: int, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Value]]]:
    """Columns, ``step`` first, and one list of values a row; what is no plain value is written as JSON.

    Known secrets are masked before a logger gets rows; here also what looks like one, since it leaves the machine.
    """
    columns = ["step", *dict.fromkeys(name for row in rows for name in row if name != "step")]
    return columns, [[step, *(_plain(row.get(name)) for name in columns[1:])] for row in rows]


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float):
        return value
    return hide_patterns(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
