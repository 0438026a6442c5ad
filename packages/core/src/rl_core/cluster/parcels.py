"""Values on their way through a socket: pickled, with the arrays in them beside that, which are not copied."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import struct
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_ALIGNMENT = 64
"""Bytes; arrays begin at multiples of it, as those that are allocated."""

_MOST_PIECES = 512
"""Of one system call; systems take 1,024."""

Parcel = Sequence[Any]
"""Buffers of bytes: a pickle, and what it says is beside it."""


def pack(value: Any) -> Parcel:
    """``value`` for :func:`send`; raises whatever it is that cannot be pickled."""
    buffers: list[pickle.PickleBuffer] = []
    head = _pickled(value, buffers)
    return [head, *(buffer.raw() for buffer in buffers)]


def unpack(parcel: Parcel) -> Any:
    """The value; its arrays cannot be written to, as those that Ray delivers."""
    return pickle.loads(parcel[0], buffers=parcel[1:])


def send(connection: Connection, parcel: Parcel) -> None:
    """Write a parcel; raises ``OSError`` where the other end is gone."""
    sizes = [len(part) for part in parcel]
    pieces = [struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)]
    for part, gap in zip(parcel, _gaps(sizes), strict=True):
        pieces += [part, bytes(gap)]
    _write(connection.fileno(), pieces)


def receive(connection: Connection) -> Parcel:
    """The next parcel, in one piece of memory that cannot be written to; raises ``EOFError`` where there is none."""
    file = connection.fileno()
    (count,) = struct.unpack("<Q", _read(file, 8))
    sizes = struct.unpack(f"<{count}Q", _read(file, 8 * count))
    ends = list(itertools.accumulate(size + gap for size, gap in zip(sizes, _gaps(sizes), strict=True)))
    body = _read(file, ends[-1])
    return [body[end - size - gap : end - gap] for end, size, gap in zip(ends, sizes, _gaps(sizes), strict=True)]


def _pickled(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    """By Python's pickle, and by Ray's, which takes three times as long, where classes or functions go along."""
    with contextlib.suppress(Exception):  # whatever a class raises; what nothing can pickle is raised below
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        if b"__main__" not in head:  # another process has another one
            return head
    from ray import cloudpickle

    buffers.clear()
    return cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)


def _gaps(sizes: Sequence[int]) -> list[int]:
    """Bytes behind each part."""
    return [-size % _ALIGNMENT for size in sizes]


def _write(file: int, pieces: Sequence[Any]) -> None:
    left = deque(memoryview(piece) for piece in pieces if len(piece))
    while left:
        written = os.writev(file, list(itertools.islice(left, _MOST_PIECES)))
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]


def _read(file: int, size: int) -> memoryview:
    room = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    found = room.data[begin : begin + size]
    missing = found
    while len(missing):
        got = os.readv(file, [missing])
        if not got:
            raise EOFError
        missing = missing[got:]
    return found.toreadonly()
