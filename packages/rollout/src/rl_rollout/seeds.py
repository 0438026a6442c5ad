"""Seeds of requests."""

from __future__ import annotations

import numpy as np


def request_seeds(run_seed: int, stage: str, step: int, count: int, *, round: int = 0) -> np.ndarray:
    """uint64 [count]: seeds of one step's requests, a function of these arguments only."""
    entropy = [run_seed, step, round, *stage.encode()]
    return np.random.SeedSequence(entropy).generate_state(count, np.uint64)
