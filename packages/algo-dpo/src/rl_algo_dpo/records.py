"""An append-only file of numbers by key, which survives a crash at any byte.

The file is a row of blocks, one per :meth:`RecordFile.append`: a magic word, the number of records,
the CRC-32 of what follows, and the records (16 bytes of key, a little-endian float32). A block that
is cut short or altered ends the file: it and what follows are dropped when the file is opened.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

KEY_BYTES = 16

_MAGIC = b"RLR1"
_HEADER = struct.Struct("<4sII")
_RECORD = np.dtype([("key", "u1", (KEY_BYTES,)), ("value", "<f4")])


class RecordFile:
    """Numbers by key in ``path``; the file and its folder appear with the first record."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[bytes, float]:
        """All whole records; anything behind them is cut off the file."""
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        values: dict[bytes, float] = {}
        at = 0
        while (block := _block(content, at)) is not None:
            records = np.frombuffer(block, _RECORD)
            values.update(zip((key.tobytes() for key in records["key"]), records["value"].tolist(), strict=True))
            at += _HEADER.size + len(block)
        if at < len(content):
            logger.warning("%s: %d bytes of an unfinished record are dropped", self.path, len(content) - at)
            os.truncate(self.path, at)
        return values

    def append(self, values: Mapping[bytes, float]) -> None:
        """Add records, all or none of which are found later.

        The operating system has them when this returns, so that they outlive the process. What a power cut takes of
        them is computed again, which a wait for the disk in every step would not be worth.
        """
        records = np.zeros(len(values), _RECORD)
        records["key"] = np.frombuffer(b"".join(values), np.uint8).reshape(-1, KEY_BYTES)
        records["value"] = list(values.values())
        payload = records.tobytes()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(_HEADER.pack(_MAGIC, len(records), zlib.crc32(payload)) + payload)

    def clear(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _block(content: bytes, at: int) -> bytes | None:
    """The records of the block at ``at``; None where there is no whole one."""
    if at + _HEADER.size > len(content):
        return None
    magic, count, checksum = _HEADER.unpack_from(content, at)
    start = at + _HEADER.size
    payload = content[start : start + count * _RECORD.itemsize]
    if magic != _MAGIC or len(payload) < count * _RECORD.itemsize or zlib.crc32(payload) != checksum:
        return None
    return payload
