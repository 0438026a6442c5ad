"""The process behind a replica; importing this module imports nothing heavy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rl_core.batch import SequenceBatch

    from rl_reward_model.config import ModelRewardConfig


class Replica:
    """Runs inside a Ray actor."""

    def __init__(self, threads: int) -> None:
        # Before anything imports torch: OpenMP reads these once.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._threads = threads
        self._scorer: Any = None

    def load(self, config: ModelRewardConfig) -> None:
        """Load the model; see :class:`rl_reward_model.scorer.Scorer`."""
        import torch

        torch.set_num_threads(self._threads)
        from rl_reward_model.scorer import Scorer

        self._scorer = Scorer(config)

    def score(self, batch: SequenceBatch) -> np.ndarray:
        """float32 [B]; see :meth:`rl_reward_model.scorer.Scorer.score`."""
        return self._scorer.score(batch)

    def pid(self) -> int:
        """Process id, for messages and tests."""
        return os.getpid()
