"""A data source: rows in a fixed order, each with its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Row = Mapping[str, Any]
"""One example as a mapping of column names to JSON-like values.

Columns with a meaning, after the user's column mapping:

- ``prompt``: ``str``, or a list of chat messages ``{"role", "content"}``
- ``completion``: ``str`` (or messages) after the prompt (SFT)
- ``messages``: a whole conversation (SFT, multi-turn)
- ``chosen`` / ``rejected``: completions of one prompt (preference pairs)
- ``label``: whether a completion is wanted (unpaired preferences, KTO)
- ``answer``: the reference that rewards compare with

``__where__`` holds ``file:line`` or the like for error messages; all other columns are passed
unchanged to rewards.
"""


class DataSource(Protocol):
    """Built as ``factory(config)`` in the driver; loading happens in ``load``."""

    def load(self) -> Sequence[Row]:
        """Read and check all rows (memory-mapped where the format allows).

        Raises:
            DataError: a bad row under ``on_bad_row: error``, or no rows at all; the message has
                ``file:line`` and the reason.
        """
        ...

    def fingerprint(self) -> str:
        """A digest of the content and of the config fields that affect the rows."""
        ...

    def report(self) -> Mapping[str, int]:
        """Counts after ``load``: ``rows``, ``skipped``."""
        ...
