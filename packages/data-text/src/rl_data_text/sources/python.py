"""Rows from a function of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rl_core.errors import DataError
from rl_isolation.functions import load_function

from rl_data_text.config import PythonConfig
from rl_data_text.sources.base import Record, TextSource, digest_rows
from rl_data_text.sources.columns import kind_of


class PythonSource(TextSource):
    """The dicts that ``function(**arguments)`` returns or yields; it is called once.

    Raises:
        DataError: from ``load``: the function raised or returned no iterable, or gave a bad row
            under ``on_bad_row: error``.
    """

    config: PythonConfig

    def __init__(self, config: PythonConfig) -> None:
        super().__init__(config)
        self._values: list[Any] | None = None

    def records(self) -> Iterator[Record]:
        for number, value in enumerate(self._call(), start=1):
            yield Record(f"{self.config.function}:row {number}", value)

    def content_digest(self) -> str:
        return digest_rows(self._call())

    def describe(self) -> str:
        return self.config.function

    def _call(self) -> list[Any]:
        if self._values is None:
            function = load_function(self.config.function)
            try:
                result = function(**self.config.arguments)
                if not isinstance(result, Iterable) or isinstance(result, str | bytes | dict):
                    raise DataError(f"{self.config.function} returned {kind_of(result)}, not an iterable of dicts")
                self._values = list(result)
            except DataError:
                raise
            except Exception as error:
                raise DataError(f"{self.config.function} raised {type(error).__name__}: {error}") from error
        return self._values
