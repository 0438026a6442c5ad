"""JSON lines: one object per line, UTF-8 (or UTF-16 or UTF-32 with a byte order mark), gzip by file name."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rl_core.errors import DataError

from rl_data_text.config import JsonlConfig
from rl_data_text.sources.base import Record, TextSource
from rl_data_text.sources.files import digest_file, find_files, read_bytes

_BOM = "\ufeff"
# UTF-32's mark for little-endian begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
    for number, line in enumerate(_lines(path, content), start=1):
        if line and not line.isspace():
            yield _parse_line(f"{path}:{number}", line, number)


def _lines(path: str, content: bytes) -> Sequence[str | bytes]:
    """The lines as text, or as bytes where one of them is not UTF-8."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding).split("\n")
            except UnicodeDecodeError as error:
                name = encoding.upper()
                raise DataError(
                    f"{path}: begins as {name}, but is not: {error.reason} at byte {error.start}"
                ) from error
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return content.split(b"\n")


def _parse_line(where: str, line: str | bytes, number: int) -> Record:
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return Record(where, error=f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}")
    try:
        value = json.loads(
            line.removeprefix(_BOM), object_pairs_hook=_object, parse_float=_float, parse_constant=_no_number
        )
        return Record(where, value)
    except json.JSONDecodeError as error:
        if number == 1 and line.strip() in ("[", "[{"):
            return Record(where, error="a JSON array over several lines, not JSON lines (convert it: jq -c '.[]')")
        if "\0" in line:
            return Record(
                where, error="NUL characters: a damaged file, or UTF-16 (convert it: iconv -f UTF-16 -t UTF-8)"
            )
        return Record(where, error=f"invalid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        return Record(where, error=f"invalid JSON: {error}")


def _float(text: str) -> float:
    """The number; one that is larger than any float64 would become infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text if len(text) <= 40 else text[:40] + '…'} is larger than any float64")
    return value


def _no_number(text: str) -> float:
    """``NaN`` and ``Infinity``, which Python writes and JSON does not have."""
    raise ValueError(f"{text} is no JSON (write null)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; of a key that is given twice, JSON does not say which value counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found
