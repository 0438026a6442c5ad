"""Best-of-n fine-tuning: RAFT (Dong et al. 2023, "Reward rAnked FineTuning"), one prompt batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rl_core.algorithm import AlgorithmBase, mean_metrics
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import Role

from rl_algo_bestofn.selection import best_of_groups

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle

    from rl_algo_bestofn.config import BestOfNConfig

LOSS = LossSpec("rl_algo_bestofn.loss:negative_log_likelihood")


class BestOfN(AlgorithmBase):
    """Samples n completions per prompt and trains on the best of them as if they were demonstrations."""

    config: BestOfNConfig

    def roles(self) -> Sequence[Role]:
        return (Role("policy", trainable=True),)

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """Select, then one optimizer step; none where no completion reaches ``min_reward``."""
        rewards = batch.sequence_columns["reward"]
        chosen = best_of_groups(
            rewards, batch.sequence_columns["group"], keep=self.config.keep, min_reward=self.config.min_reward
        )
        metrics = {"bestofn/selected_fraction": len(chosen) / len(batch)}
        if not len(chosen):
            return metrics
        metrics["bestofn/selected_reward_mean"] = float(rewards[chosen].mean())
        return metrics | mean_metrics([models["policy"].train(batch.select(chosen), LOSS)])
