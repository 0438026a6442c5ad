"""Asynchronous rollouts: the batches of coming steps are sampled while the current one is trained on."""

from __future__ import annotations

import time

import numpy as np
from rl_core.contracts.feed import Draw, Feed
from rl_core.data.prefetch import Prefetch
from rl_core.errors import RLError


class BoundedStalenessFeed(Prefetch):
    """Samples up to ``max_staleness`` steps ahead of training.

    Step ``s`` is trained from weights of version ``s - 1``. Its batch may have been begun by weights that are at most
    ``k = max_staleness`` versions older, so with weights of version ``v`` the batches that may have been begun are
    those of the steps up to ``v + 1 + k``; in prompts, with ``B`` of them a step::

        capacity = (v + 1 + k) · B - prompts begun so far

    (Fu et al. 2025, AReaL, section 5.1). Tokens are never older than the weights a batch was begun with, so no token
    is more than ``k`` versions old when it is trained on, however long anything takes. With ``k = 0`` a batch is
    begun when it is asked for, which is what the feed does by itself.
    """

    def __init__(self, feed: Feed, *, max_staleness: int, steps: int) -> None:
        super().__init__(feed, depth=max_staleness, steps=steps)
        self._max_staleness = max_staleness

    def next(self, step: int) -> Draw:
        """The batch of ``step``; called when the weights of version ``step - 1`` have reached the generator.

        Raises:
            RLError: sampling failed, or a token is older than ``max_staleness`` allows.
        """
        started = time.perf_counter()
        draw = super().next(step)
        waited = time.perf_counter() - started
        return Draw(draw.batch, draw.metrics | self._staleness(step, draw) | {"time/wait_s": waited}, draw.samples)

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
