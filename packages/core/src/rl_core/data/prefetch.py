"""The batches of coming steps are made in a thread while the current one is trained on."""

from __future__ import annotations

import threading

from rl_core.contracts.feed import Draw, Feed

_HEAD_START_S = 0.002
"""Of the step whose batch was handed out: it sends its call first, which would have to wait for Python's lock."""


class Prefetch:
    """Makes the batches of up to ``depth`` steps before they are asked for.

    Args:
        feed: used by the thread alone from now on.
        depth: batches that may be begun besides the one that is asked for.
        steps: last step; nothing is made beyond it.

    Attributes:
        position: in the data, after the last batch that was handed out, which a resume continues from.
    """

    def __init__(self, feed: Feed, *, depth: int, steps: int) -> None:
        self.position = feed.position
        self.samples = feed.samples
        self._feed = feed
        self._depth = depth
        self._steps = steps
        self._changed = threading.Condition()
        self._asked = 0  # the last step whose batch was asked for
        self._ready: dict[int, tuple[Draw, int]] = {}  # batches, and the position in the data after each
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def next(self, step: int) -> Draw:
        """The batch of ``step``; raises what the feed raised for it."""
        with self._changed:
            self._asked = step
            if self._thread is None:
                self._thread = threading.Thread(target=self._make, args=(step,), name="prefetch", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: step in self._ready or self._error is not None)
            if step not in self._ready and self._error is not None:
                raise self._error
            draw, self.position = self._ready.pop(step)
        return draw

    def close(self) -> None:
        """Begin no further batch; one that is being made is left to its end and forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make(self, step: int) -> None:
        for current in range(step, self._steps + 1):
            if not self._may_begin(current):
                return
            try:
                draw = self._feed.next(current)
            except BaseException as error:  # noqa: BLE001 - raised where the batch is asked for
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready[current] = draw, self._feed.position
                self._changed.notify_all()

    def _may_begin(self, step: int) -> bool:
        """Wait for it; False once the feed is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or step <= self._asked + self._depth)
            self._changed.wait_for(lambda: self._closed or step <= self._asked, timeout=_HEAD_START_S)
            return not self._closed
