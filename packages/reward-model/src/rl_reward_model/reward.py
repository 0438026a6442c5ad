"""The reward: samples in, the reward model's scores out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.reward import Sample
from rl_core.errors import EnvironmentProblem, RLError

from rl_reward_model.batching import distinct, shares
from rl_reward_model.config import ModelRewardConfig
from rl_reward_model.encoding import Encoder, place_of
from rl_reward_model.folder import folder_problem
from rl_reward_model.pool import ReplicaPool


class ModelReward:
    """Scores ``row["prompt"]`` with the completion. Workers start at the first :meth:`score`.

    Raises:
        EnvironmentProblem: ``path`` is a folder that holds no reward model.
    """

    def __init__(self, config: ModelRewardConfig) -> None:
        self.config = config
        found = folder_problem(config.path) if os.path.isabs(config.path) else None
        if found is not None:
            raise EnvironmentProblem(f"reward {config.name!r}: {found}")
        self._pool = ReplicaPool(config)
        self._encoder: Encoder | None = None

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score per sample, in order: the model's output, normalized where that is configured.

        Raises:
            DataError: a sample is too long or cannot be rendered.
            EnvironmentProblem, WorkerDied, RLError: see :meth:`rl_reward_model.pool.ReplicaPool.score`;
                or a score is no finite number.
        """
        if not samples:
            return []
        self._pool.start(range(self.config.replicas))  # they load while the samples are tokenized
        if self._encoder is None:
            self._encoder = Encoder(self.config)
        sequences, places = distinct(self._encoder.encode(samples))
        scores = self._scores(sequences)[places]
        for value, sample in zip(scores, samples, strict=True):
            if not math.isfinite(value):
                raise RLError(
                    f"reward {self.config.name!r} gives {value} for {place_of(sample)}\n    {self._finite_advice()}"
                )
        if self.config.normalize is not None:
            scores = (scores - self.config.normalize.mean) / self.config.normalize.std
        return scores.tolist()

    def close(self) -> None:
        """End the workers; a later :meth:`score` starts them again."""
        self._pool.close()

    def _scores(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N], from all replicas."""
        parts = shares([len(tokens) for tokens in sequences], self.config.replicas)
        asked = {
            replica: SequenceBatch.from_lists([sequences[i] for i in indices])
            for replica, indices in enumerate(parts)
            if len(indices)
        }
        scores = np.zeros(len(sequences), np.float64)
        for replica, part in self._pool.score(asked).items():
            scores[parts[replica]] = part
        return scores

    def _finite_advice(self) -> str:
        if self.config.dtype == "float16":
            return "float16 overflows early: set dtype: bfloat16 or float32"
        return f"check the weights in {self.config.path}"
