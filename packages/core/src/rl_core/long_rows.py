"""Rows that are longer than what the model takes: what happens to them, and one line that says so."""

from __future__ import annotations

import logging
from typing import Literal

from rl_core.errors import DataError

logger = logging.getLogger(__name__)

OnLong = Literal["error", "truncate", "skip"]
_SHOWN = 3
_LOGGED = 20
"""Rows that a log names one by one; the summary counts all."""


class LongRowError(DataError):
    """A row is too long, and the config says that this is an error."""


class LongRows:
    """The long rows that were seen so far.

    Attributes:
        on_long: what happens to one.
    """

    def __init__(self, on_long: OnLong, *, what: str, limit: str, fix: str) -> None:
        """``what`` the rows are, the ``limit`` with its number, and how to ``fix`` it, for messages."""
        self.on_long = on_long
        self._what = what
        self._limit = limit
        self._fix = fix
        self._tokens: dict[str, int] = {}
        self._lost: set[str] = set()
        self._warned = False

    def __len__(self) -> int:
        return len(self._tokens)

    def record(self, where: str, tokens: int, *, lost: bool = False) -> None:
        """Count a row, once however often it is seen.

        The first one is a warning, later ones are not: every epoch sees them again. After :meth:`quiet` none is. The
        log names the first 20.

        Args:
            where: the row's place.
            tokens: its length.
            lost: truncating it would leave nothing to train on, so it is left out.

        Raises:
            LongRowError: under ``error``.
        """
        known = where in self._tokens
        self._tokens[where] = max(tokens, self._tokens.get(where, 0))
        if lost:
            self._lost.add(where)
        if self.on_long == "error":
            raise LongRowError(f"{where}: {tokens:,} tokens, more than {self._limit}\n    {self._fix}")
        if not known:
            outcome = "skipped" if lost or self.on_long == "skip" else "truncated"
            level = logging.DEBUG if len(self) > _LOGGED else logging.INFO if self._warned else logging.WARNING
            logger.log(level, "%s: %s tokens, more than %s: %s", where, f"{tokens:,}", self._limit, outcome)
            self._warned = True

    def quiet(self) -> None:
        """Single rows are no longer warnings: a summary follows."""
        self._warned = True

    def summary(self, checked: int) -> str:
        """The line about ``checked`` rows, of which at least one is long."""
        where, longest = max(self._tokens.items(), key=lambda item: item[1])
        outcome = "skipped" if self.on_long == "skip" else "truncated"
        if self._lost and self.on_long == "truncate":
            outcome += f" ({len(self._lost):,} of them skipped, because nothing to train on would be left)"
        verb = "is" if len(self) == 1 else "are"
        return (
            f"{len(self):,} of {checked:,} {self._what} {verb} longer than {self._limit}: {outcome}; "
            f"longest {longest:,} ({where})"
        )

    def error(self, checked: int) -> LongRowError:
        """The error for all of them, under ``error``."""
        places = [f"{where} has {tokens:,} tokens" for where, tokens in self._tokens.items()]
        shown = "; ".join(places[:_SHOWN]) + ("; …" if len(places) > _SHOWN else "")
        verb = "is" if len(places) == 1 else "are"
        return LongRowError(
            f"{len(places):,} of {checked:,} {self._what} {verb} longer than {self._limit}: {shown}\n    {self._fix}"
        )
