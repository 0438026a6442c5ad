"""Parquet files, read with pyarrow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from rl_core.errors import DataError

from rl_data_text.config import ParquetConfig
from rl_data_text.sources.base import Record, TextSource
from rl_data_text.sources.files import digest_file, find_files

_ROWS_AT_ONCE = 1024


class ParquetSource(TextSource):
    """Rows of Parquet files, in the order of ``path``; rows count from 1 in each file.

    Raises:
        DataError: from ``load``: a missing file, one that is not Parquet, or a bad row under
            ``on_bad_row: error``.
    """

    config: ParquetConfig

    def records(self) -> Iterator[Record]:
        import pyarrow
        import pyarrow.parquet

        for path in find_files(self.config.paths):
            number = 0
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                        for value in batch.to_pylist():
                            number += 1
                            yield Record(f"{path}:row {number}", value)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read as Parquet: {error}") from error

    def content_digest(self) -> str:
        digests = [digest_file(path) for path in find_files(self.config.paths)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def describe(self) -> str:
        return ", ".join(self.config.paths)
