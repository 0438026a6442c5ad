"""Reads a ``.wandb`` file: records of W&B's protocol buffers in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
HEADER = 7


def records(path: Path) -> list[Record]:
    data, at, found, parts = path.read_bytes(), HEADER, [], b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def only(folder: Path, kind: str) -> list:
    """What all files in a run directory have of one kind, such as ``history``."""
    return [
        getattr(record, kind)
        for path in sorted(folder.glob("wandb/*/*.wandb"))
        for record in records(path)
        if record.WhichOneof("record_type") == kind
    ]


def rows(folder: Path) -> list[dict]:
    """The history, without W&B's own columns."""
    found = []
    for history in only(folder, "history"):
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        found.append({key: value for key, value in row.items() if not key.startswith("_")})
    return found
