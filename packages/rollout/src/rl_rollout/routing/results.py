"""The completions of one submission, on their way from the engine's thread to who asked for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from rl_core.contracts.generation import Completion


class Results:
    """An async iterator over ``count`` completions as they finish, or :meth:`all` of them at once.

    Args:
        count: completions to come.
        check: raises for a completion that cannot be given out.
    """

    def __init__(self, count: int, *, check: Callable[[Completion], None] = lambda _: None) -> None:
        self._left = count
        self._check = check
        self._changed = threading.Condition()
        self._arrived: deque[Completion] = deque()
        self._error: BaseException | None = None
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def deliver(self, completions: Sequence[Completion]) -> None:
        """Called by the engine's thread."""
        with self._changed:
            self._arrived += completions
            self._notify()

    def fail(self, error: BaseException) -> None:
        """No more will come; called by the engine's thread."""
        with self._changed:
            self._error = error
            self._notify()

    def all(self) -> list[Completion]:
        """Wait for all, without an event loop; in the order in which they finished. They are not checked."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or len(self._arrived) == self._left)
            if self._error is not None:
                raise self._error
            found = list(self._arrived)
            self._arrived.clear()
            self._left = 0
        return found

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> Completion:
        arrives = asyncio.Event()
        while True:
            with self._changed:
                if self._arrived:
                    self._left -= 1
                    completion = self._arrived.popleft()
                    break
                if not self._left:
                    raise StopAsyncIteration
                if self._error is not None:
                    raise self._error
                self._waiter = asyncio.get_running_loop(), arrives
            await arrives.wait()
            arrives.clear()
        self._check(completion)
        return completion

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, arrives = self._waiter
            self._waiter = None
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(arrives.set)


def deliver_each(results: Sequence[Results], completions: Sequence[Completion]) -> None:
    """Give each submission its own completions, once: ``results[i]`` is that of ``completions[i]``."""
    shares: dict[int, tuple[Results, list[Completion]]] = {}
    for one, completion in zip(results, completions, strict=True):
        shares.setdefault(id(one), (one, []))[1].append(completion)
    for one, share in shares.values():
        one.deliver(share)
