"""Group relative policy optimization (Shao et al. 2024, DeepSeekMath, algorithm 1) and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rl_algo_common.rollouts import with_logprobs
from rl_core.algorithm import AlgorithmBase, mean_metrics, sampling_temperature
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import Role

from rl_algo_grpo.advantages import varied_groups, with_advantages

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle

    from rl_algo_grpo.config import GrpoConfig


class Grpo(AlgorithmBase):
    """Raises the probability of completions that beat the others of their prompt, or of their step."""

    config: GrpoConfig

    def roles(self) -> Sequence[Role]:
        policy = Role("policy", trainable=True)
        return (policy, Role("reference", trainable=False)) if self.config.uses_reference else (policy,)

    def keep(self, batch: SequenceBatch) -> np.ndarray:
        """bool [B]: groups whose rewards differ, before anything is taken off them (Yu et al. 2025, DAPO, eq. 11)."""
        return varied_groups(batch.sequence_columns["reward"], batch.sequence_columns["group"])

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """``epochs × minibatches`` optimizer steps on rollouts with their rewards.

        Args:
            batch: token columns ``loss_mask`` and ``sampled_logprobs``; sequence columns ``group``, ``reward``, with
                ``overlong.mode`` mask ``truncated``, and, unless it was 1, the sampling ``temperature``.

        Returns:
            means over the optimizer steps of ``train/…``, ``policy/…`` and ``mismatch/…`` (their maximum for
            ``max_…``), the latter two over the tokens of the sequences that are not skipped, and ``rollout/…``.
        """
        temperature = sampling_temperature(batch)
        batch = with_logprobs(batch, self.logprob_sources(models), temperature=temperature)
        batch, metrics = with_advantages(batch, self.config)
        loss, updates = self.loss(temperature), []
        for _ in range(self.config.epochs):
            for minibatch in batch.minibatches(self.config.minibatches):
                if len(minibatch):  # dynamic sampling may leave fewer sequences than minibatches
                    updates.append(models["policy"].train(minibatch, loss))
        return {"train/skipped_sequences_fraction": 0.0, **mean_metrics(updates), **metrics}

    def logprob_sources(self, models: Mapping[str, ModelHandle]) -> dict[str, ModelHandle]:
        """The log-probs that rewards or loss need, by column, and the model that has them."""
        config, sources = self.config, {}
        if config.uses_reference:
            sources["ref_logprobs"] = models["reference"]
        if config.updates_per_step > 1 or config.kl_in_reward:
            sources["old_logprobs"] = models["policy"]
        return sources

    def loss(self, temperature: float) -> LossSpec:
        """The loss of every optimizer step, for log-probs at ``temperature``."""
        config = self.config
        return config.loss_spec(
            "rl_algo_grpo.loss:policy_loss",
            temperature=temperature,
            loss=config.loss,
            kl_coefficient=config.kl.coefficient if config.kl_in_loss else 0.0,
            kl_estimator=config.kl.estimator,
            # With a single update the log-probs it computes are the old policy's: no extra forward pass.
            on_policy=config.updates_per_step == 1,
        )
