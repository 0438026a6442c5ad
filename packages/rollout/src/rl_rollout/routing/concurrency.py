"""How many requests a replica is given at once, found from what it delivers."""

from __future__ import annotations

from dataclasses import dataclass, field

LOWEST = 8
GROWTH = 1.5
BETTER = 1.05
"""A window counts as faster from this factor on, and as slower below its inverse."""


@dataclass
class ConcurrencyLimit:
    """Hill climbing: the limit grows while more requests at once mean more tokens a second.

    A window is ``limit`` completions long, so that every request in flight is replaced about once. The limit grows by
    ``GROWTH``, and again as long as each window delivers at least ``BETTER`` times the tokens a second of the one
    before; a growth that does not is taken back. It is tried once more after ``patience`` windows, since the load
    changes. A window that delivered less than ``1 / BETTER`` of the one before shrinks the limit. Windows in which the
    replica had not always about ``limit`` requests say nothing about it and do not count. Time is passed in (seconds).

    Attributes:
        limit: requests that may be in flight.
    """

    start: int = 64
    most: int = 4096
    patience: int = 8
    limit: int = field(init=False)
    _began: float | None = field(default=None, init=False)
    _tokens: int = field(default=0, init=False)
    _completions: int = field(default=0, init=False)
    _full: bool = field(default=True, init=False)
    _before: float | None = field(default=None, init=False)
    _quiet: int = field(default=0, init=False)
    _grew_from: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.limit = min(max(self.start, LOWEST), self.most)

    def finished(self, tokens: int, *, in_flight: int, now: float) -> None:
        """A request ended with ``tokens``; ``in_flight`` counts it too."""
        if self._began is None:
            self._began = now
        self._tokens += tokens
        self._completions += 1
        # Requests that are on their way to the replica are not missed.
        self._full &= in_flight >= 0.9 * self.limit
        if self._completions >= self.limit and now > self._began:
            self._judge(self._tokens / (now - self._began))
            self._began, self._tokens, self._completions, self._full = now, 0, 0, True

    def _judge(self, speed: float) -> None:
        if not self._full:
            return
        before, self._before = self._before, speed
        grew_from, self._grew_from = self._grew_from, None
        if before is None or (grew_from is not None and speed >= BETTER * before):
            self._grow()
        elif grew_from is not None:
            self.limit, self._quiet = grew_from, 0
        elif speed * BETTER < before:
            self.limit, self._quiet = max(LOWEST, int(self.limit / GROWTH)), 0
        else:
            self._quiet += 1
            if self._quiet >= self.patience:
                self._grow()

    def _grow(self) -> None:
        self._grew_from, self.limit, self._quiet = self.limit, min(self.most, int(self.limit * GROWTH)), 0
