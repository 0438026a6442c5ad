"""JSON lines: one object per line, UTF-8, gzip by file name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from rl_data_text.config import JsonlConfig
from rl_data_text.sources.base import Record, TextSource
from rl_data_text.sources.files import digest_file, find_files, read_bytes

_BOM = "\ufeff"


class JsonlSource(TextSource):
    """Rows of JSON-lines files, in the order of ``path``; blank lines are no rows.

    Raises:
        DataError: from ``load``: a missing file, or a bad line (invalid JSON or UTF-8, not an
            object, a missing or unusable column) under ``on_bad_row: error``.
    """

    config: JsonlConfig

    def records(self) -> Iterator[Record]:
        for path in find_files(self.config.paths):
            yield from _parse(path, read_bytes(path))

    def content_digest(self) -> str:
        digests = [digest_file(path) for path in find_files(self.config.paths)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def describe(self) -> str:
        return ", ".join(self.config.paths)


def _parse(path: str, content: bytes) -> Iterator[Record]:
    try:
        lines: list[str | bytes] = list(content.decode("utf-8").removeprefix(_BOM).split("\n"))
    except UnicodeDecodeError:
        lines = list(content.split(b"\n"))
    for number, line in enumerate(lines, start=1):
        if line and not line.isspace():
            yield _parse_line(f"{path}:{number}", line, number)


def _parse_line(where: str, line: str | bytes, number: int) -> Record:
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return Record(where, error=f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}")
    try:
        return Record(where, json.loads(line))
    except json.JSONDecodeError as error:
        if number == 1 and line.strip() in ("[", "[{"):
            return Record(where, error="a JSON array over several lines, not JSON lines (convert it: jq -c '.[]')")
        return Record(where, error=f"invalid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        return Record(where, error=f"invalid JSON: {error}")
