"""What a process prints becomes log records of the driver."""

from __future__ import annotations

import logging

from rl_isolation.describe import printable

logger = logging.getLogger(__name__)


class Printed:
    """Logs whole lines as warnings, so that they are seen where the run's log is, and its secrets are masked.

    Args:
        name: whose output it is.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""

    def add(self, data: bytes) -> None:
        """Take in bytes as they come."""
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._log(whole)

    def flush(self) -> None:
        """The last line, though it has no end."""
        rest, self._rest = self._rest, b""
        if rest:
            self._log(rest)

    def _log(self, data: bytes) -> None:
        text = data.decode(errors="replace").replace("\r", "\n").strip("\n")
        if text.strip():  # what moves a terminal's cursor is not for ours
            logger.warning("%s printed: %s", self._name, printable(text))
