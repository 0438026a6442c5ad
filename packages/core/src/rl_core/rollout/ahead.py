"""Asynchronous rollouts: the batches of coming steps are sampled while the current one is trained on."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from rl_core.errors import RLError
from rl_core.rollout.cursor import DataCursor
from rl_core.rollout.feed import Draw, Feed

logger = logging.getLogger(__name__)


class AheadFeed:
    """Samples up to ``max_staleness`` steps ahead of training, in a thread.

    Step ``s`` is trained from weights of version ``s - 1``. Its batch may have been begun by weights that are at most
    ``k = max_staleness`` versions older, so with weights of version ``v`` the batches that may have been begun are
    those of the steps up to ``v + 1 + k``; in prompts, with ``B`` of them a step::

        capacity = (v + 1 + k) · B - prompts begun so far

    (Fu et al. 2025, AReaL, section 5.1). Tokens are never older than the weights a batch was begun with, so no token
    is more than ``k`` versions old when it is trained on, however long anything takes. With ``k = 0`` a batch is
    begun when it is asked for, which is what the feed does by itself.

    Args:
        feed: used by the thread alone from now on.
        steps: last step; nothing is sampled beyond it.
    """

    samples = True

    def __init__(self, feed: Feed, *, max_staleness: int, steps: int) -> None:
        cursor = feed.cursor
        self.cursor = DataCursor(size=cursor.size, seed=cursor.seed, position=cursor.position)  # of what was handed out
        self._feed = feed
        self._max_staleness = max_staleness
        self._steps = steps
        self._changed = threading.Condition()
        self._allowed = 0  # the last step whose batch may be begun
        self._ready: dict[int, tuple[Draw, int]] = {}  # batches, and the position in the data after each
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def next(self, step: int) -> Draw:
        """The batch of ``step``; called when the weights of version ``step - 1`` have reached the generator.

        Raises:
            RLError: sampling failed, or a token is older than ``max_staleness`` allows.
        """
        started = time.perf_counter()
        with self._changed:
            self._allowed = min(step + self._max_staleness, self._steps)
            if self._thread is None:
                self._thread = threading.Thread(target=self._sample, args=(step,), name="rollouts", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: step in self._ready or self._error is not None)
            if step not in self._ready and self._error is not None:
                raise self._error
            draw, self.cursor.position = self._ready.pop(step)
        waited = time.perf_counter() - started
        return Draw(draw.batch, draw.metrics | self._staleness(step, draw) | {"time/wait_s": waited}, draw.samples)

    def close(self) -> None:
        """Begin no further batch; one that is under way is left to its end and forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _sample(self, step: int) -> None:
        for current in range(step, self._steps + 1):
            if not self._may_begin(current):
                return
            try:
                draw = self._feed.next(current)
            except Exception as error:  # noqa: BLE001 - raised where the batch is asked for
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready[current] = draw, self._feed.cursor.position
                self._changed.notify_all()

    def _may_begin(self, step: int) -> bool:
        """Wait for it; False once the feed is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or step <= self._allowed)
            return not self._closed

    def _staleness(self, step: int, draw: Draw) -> dict[str, float]:
        versions = draw.batch.token_columns["weights_version"]
        ages = step - 1 - versions[draw.batch.token_columns["loss_mask"] > 0]
        oldest = int(ages.max(initial=0))
        if oldest > self._max_staleness:
            raise RLError(
                f"step {step}: the generator answered with weights {oldest} versions old, more than "
                f"run.max_staleness {self._max_staleness}; it ignores new weights, or numbers them otherwise"
            )
        return {"rollout/staleness_mean": float(np.mean(ages)) if len(ages) else 0.0, "rollout/staleness_max": oldest}
