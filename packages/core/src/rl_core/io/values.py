"""Values of any type as JSON has them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LONGEST = 10**4000
"""Whole numbers from here on have more digits than Python writes down."""


def plain(value: Any) -> Any:
    """``value`` in JSON's types: numpy becomes Python, what is not finite ``None``, dates and times ISO 8601, bytes
    their number, anything else its ``str``.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < _LONGEST else f"<a number of {value.bit_length()} bits>"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)
