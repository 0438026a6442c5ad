"""Files that are appended to line by line, and that a full disk does not tear or shorten."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

from rl_core.io.files import open_regular

logger = logging.getLogger("rl")

MOST_WAITING_BYTES = 64 * 2**20
"""What a file keeps in memory while its disk is full; lines beyond are lost, and counted in a warning."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class AppendedFile:
    """Lines that reach the operating system at once, or, while the disk is full, as soon as there is room again.

    Lines are tried again with the next one, and by :meth:`retry`. A last line that a crash cut short is ended first,
    never removed.

    Raises:
        OSError: the file cannot be opened or written, for another reason than a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[tuple[Any, bytes]] = []
        self._waiting_bytes = 0
        self._written = 0  # bytes of the first waiting line
        self._lost = 0
        self._full = False
        self._file = self._open()

    def append(self, line: str, *, key: Any = None) -> None:
        """Append ``line``, without its newline; ``key`` is for :meth:`reopen`."""
        # A lone surrogate from a tokenizer becomes \\udXXX, which is how JSON spells it.
        data = line.encode("utf-8", errors="backslashreplace") + b"\n"
        if self._waiting_bytes + len(data) > MOST_WAITING_BYTES:
            self._lost += 1
        else:
            self._waiting.append((key, data))
            self._waiting_bytes += len(data)
        self.retry()

    def retry(self) -> None:
        """Write the lines that wait for room, as far as there is any."""
        try:
            while self._waiting:
                self._write_first()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._tell_full(error)
            return
        if self._full:
            self._full, lost, self._lost = False, self._lost, 0
            but = f" but {lost} lines, for which there was no memory" if lost else ""
            logger.warning("%s: there is room again; nothing is missing%s", self.path, but)

    def reopen(self, *, without: Any) -> None:
        """Open the path again, at which there may be another file now.

        Args:
            without: ``without(key)`` tells which waiting lines are not to be written any more.
        """
        os.close(self._file)
        self._waiting = [(key, data) for key, data in self._waiting if not without(key)]
        self._waiting_bytes, self._written = sum(len(data) for _, data in self._waiting), 0
        self._file = self._open()
        self.retry()

    def close(self) -> None:
        """Close the file; lines for which there still is no room are lost, with a warning."""
        if self._file < 0:
            return
        self.retry()
        os.close(self._file)
        self._file = -1
        if self._waiting:
            count = len(self._waiting) + self._lost
            lines = "line is" if count == 1 else f"{count} lines are"
            logger.warning("%s: the last %s lost: the disk is full", self.path, lines)

    def _open(self) -> int:
        file = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            self._waiting.insert(0, (None, b"\n"))
            self._waiting_bytes += 1
        return file

    def _write_first(self) -> None:
        data = self._waiting[0][1]
        self._written += os.write(self._file, data[self._written :])
        if self._written == len(data):
            del self._waiting[0]
            self._waiting_bytes -= len(data)
            self._written = 0

    def _tell_full(self, error: OSError) -> None:
        """Once; set before it is told, because the log may be the very file."""
        if not self._full:
            self._full = True
            logger.warning(
                "%s: %s; new lines are kept in memory, and written when there is room", self.path, error.strerror
            )


class LogFile(logging.Handler):
    """A handler that appends to a file; while the disk is full its lines wait."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = AppendedFile(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.append(self.format(record))
        except Exception:  # noqa: BLE001 - as in every handler of the standard library
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()
