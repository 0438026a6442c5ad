"""Parquet files, read with pyarrow."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rl_core.errors import DataError

from rl_data_text.config import ParquetConfig
from rl_data_text.sources.base import Record, TextSource
from rl_data_text.sources.files import digest_file, find_files

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 1024


class ParquetSource(TextSource):
    """Rows of Parquet files, in the order of ``path``; rows count from 1 in each file.

    Raises:
        DataError: from ``load``: a missing file, one that is not Parquet, or a bad row under
            ``on_bad_row: error``.
    """

    config: ParquetConfig
    fills_with_nulls = True

    def records(self) -> Iterator[Record]:
        import pyarrow
        import pyarrow.parquet

        for path in find_files(self.config.paths):
            number = 0
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    _check_names(path, file.schema_arrow.names)
                    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                        for value, error in _values(batch):
                            number += 1
                            yield Record(f"{path}:row {number}", value, error)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read as Parquet: {error}") from error

    def content_digest(self) -> str:
        digests = [digest_file(path) for path in find_files(self.config.paths)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def describe(self) -> str:
        return ", ".join(self.config.paths)


def _check_names(path: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two columns have the name {twice[0]!r}\n    rename or drop one of them")


def _values(batch: pyarrow.RecordBatch) -> Iterator[tuple[Any, str]]:
    """The rows in Python's types, each with why it has none: text that is not UTF-8, a time after the year 9999."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(len(batch)):
            yield _value(batch.slice(index, 1))
    else:
        for value in values:
            yield value, ""


def _value(row: pyarrow.RecordBatch) -> tuple[Any, str]:
    try:
        return row.to_pylist()[0], ""
    except (ValueError, OverflowError) as error:
        return None, f"cannot be read: {error}"
