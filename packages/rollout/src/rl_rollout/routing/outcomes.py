"""What a request gets that no replica answers."""

from __future__ import annotations

import numpy as np
from rl_core.cluster.calls import Deadlines
from rl_core.contracts.generation import Completion
from rl_core.errors import WorkerDied

from rl_rollout.replacements import Replacements

ATTEMPTS = 3
"""A request whose replicas died this many times is what kills them."""


def nothing(request: str) -> Completion:
    """The completion of request ``request``, aborted before anything was sampled."""
    none = np.zeros(0, np.int32)
    return Completion(request, none, np.zeros(0, np.float32), none, "abort")


def killer(death: WorkerDied) -> WorkerDied:
    """The error of a request that ended ``ATTEMPTS`` replicas, the last one by ``death``."""
    return WorkerDied(
        f"generation failed {ATTEMPTS} times on the same requests, each time with the end of the generator; the last "
        f"time:\n{death}",
        worker=death.worker,
        role="generate",
        cause=death.cause,
    )


def none_left(last: WorkerDied | None) -> WorkerDied:
    """The error where there is no replica; ``last`` is the death of the last one."""
    return last or WorkerDied("there is no generator left\n    see the run's logs/", role="generate")


def check_hope(
    replacements: Replacements | None, deadlines: Deadlines, *, waited_s: float, last: WorkerDied | None
) -> None:
    """Have replicas started where there is none.

    Raises:
        WorkerDied: no replica can be expected any more.
    """
    if replacements is None:
        raise none_left(last)
    replacements.start_missing(0)
    if replacements.exhausted or waited_s > deadlines.start_s + (deadlines.resources_s or 0.0):
        raise none_left(last)
