"""New weights that arrive while a generator is sampling: taken over between two of its decoding steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WeightUpdates:
    """Lets ``update_weights`` of one thread into a ``generate`` that runs in another.

    ``generate`` samples inside ``with updates.sampling():`` and calls :meth:`between_steps` after every decoding step;
    ``update_weights`` hands the change itself to :meth:`apply`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sampling = False
        self._waiting: list[_Update] = []

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Calls that sample run one after the other."""
        with self._changed:
            self._changed.wait_for(lambda: not self._sampling)
            self._sampling = True
        try:
            yield
        finally:
            with self._changed:
                self._sampling = False
                self._apply_waiting()

    def apply(self, change: Callable[[], None]) -> None:
        """Call ``change`` when no decoding step is running, and return when that is done; raises what it raises."""
        with self._changed:
            if not self._sampling:
                change()
                return
            update = _Update(change)
            self._waiting.append(update)
            self._changed.wait_for(lambda: update.done)
        if update.error is not None:
            raise update.error

    def between_steps(self) -> bool:
        """Take over what has arrived; whether the weights changed."""
        if not self._waiting:
            return False
        with self._changed:
            return self._apply_waiting()

    def _apply_waiting(self) -> bool:
        changed = False
        for update in self._waiting:
            changed |= update.run()
        self._waiting.clear()
        self._changed.notify_all()
        return changed


class _Update:
    def __init__(self, change: Callable[[], None]) -> None:
        self._change = change
        self.done = False
        self.error: Exception | None = None

    def run(self) -> bool:
        try:
            self._change()
        except Exception as error:  # noqa: BLE001 - raised by WeightUpdates.apply
            self.error = error
        self.done = True
        return self.error is None
