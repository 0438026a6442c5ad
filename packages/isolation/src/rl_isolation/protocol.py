"""Frames: a kind in 1 byte, the length of the body in 8, the body. Standard library only: a supervisor imports it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping

HEADER = struct.Struct("!BQ")

TASK, ANSWER, CHECK, LOG, OUTPUT, STARTED, ENDED = range(1, 8)
"""Kinds. Driver → supervisor → child: TASK. Child → supervisor: ANSWER, LOG, and CHECK, which repeats the bytes of the
supervisor's CHECK. Supervisor → driver: STARTED with the child's process id, ANSWER, LOG, OUTPUT, and ENDED."""

DUMP_SIGNAL = signal.SIGUSR2
"""Makes the child write its stacks, whatever it is stuck in."""

NONCE_BYTES = 16
DEADLINE = struct.Struct("!d")
"""A TASK of the driver is a nonce, the seconds it may take, and the pickle. ANSWER and ENDED bring the nonce back."""

INLINE_BYTES = 1 << 16
IN_FILE = struct.Struct("!Q")
"""Stands before the pickle: 0, or the length of a longer pickle, which is in a file that driver and child share."""

CONTROL_BYTES = 1 << 20
"""Longest STARTED, ENDED or LOG."""

BUFFER_BYTES = 1 << 18

SETUP_S = 300.0
"""Longest for importing and building what answers tasks: it may import a framework or read a model."""

CLOSE_S = 5.0
"""Longest that what answered tasks may take to close itself."""


class ProtocolError(Exception):
    """Bytes that are no frame that may come here; the message says why."""


class FrameReader:
    """Takes bytes as they arrive and gives frames.

    Args:
        longest: kind → the most bytes its body may have; other kinds are refused.
    """

    def __init__(self, longest: Mapping[int, int]) -> None:
        self._longest = longest
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> tuple[int, bytes] | None:
        """The next frame, None where it is not complete.

        Raises:
            ProtocolError: what arrived is no frame.
        """
        if len(self._bytes) < HEADER.size:
            return None
        kind, size = HEADER.unpack_from(self._bytes)
        if kind not in self._longest:
            raise ProtocolError(f"a message of the kind {kind}")
        most = self._longest[kind]
        if size > most:
            raise ProtocolError(f"a message of {size:,} bytes; at most {most:,} are read")
        end = HEADER.size + size
        if len(self._bytes) < end:
            return None
        body = bytes(memoryview(self._bytes)[HEADER.size : end])
        del self._bytes[:end]
        return kind, body


def file_in_memory() -> int:
    """The descriptor of a file that has no name."""
    if sys.platform == "linux":
        return os.memfd_create("isolation")
    import tempfile

    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


class SendBuffer:
    """Bytes on their way into a socket that must not block."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._parts: list[memoryview] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def put(self, kind: int, *body: bytes) -> None:
        """Add a frame and write what can be written now."""
        data = b"".join(body)
        self._parts.append(memoryview(HEADER.pack(kind, len(data)) + data))
        self.flush()

    def clear(self) -> None:
        """Forget what was not written."""
        self._parts = []

    def flush(self) -> None:
        """Write what can be written without waiting.

        Raises:
            OSError: nobody reads at the other end.
        """
        while self._parts:
            try:
                sent = self._channel.send(self._parts[0])
            except BlockingIOError:
                return
            if sent == len(self._parts[0]):
                self._parts.pop(0)
            else:
                self._parts[0] = self._parts[0][sent:]


def read_frame(channel: socket.socket) -> tuple[int, bytes] | None:
    """The next frame of a blocking socket, whatever it is; None at its end."""
    header = _read(channel, HEADER.size)
    if header is None:
        return None
    kind, size = HEADER.unpack(header)
    body = _read(channel, size)
    return None if body is None else (kind, body)


def _read(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = channel.recv_into(view[done:])
        if not count:
            return None
        done += count
    view.release()
    return bytes(data)
