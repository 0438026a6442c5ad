"""Group relative policy optimization (Shao et al. 2024, DeepSeekMath, algorithm 1) and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rl_core.algorithm import AlgorithmBase, mean_metrics, sampling_temperature
from rl_core.batch import SequenceBatch
from rl_core.batch.ragged import any_per_row
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import Role
from rl_core.statistics import kl_estimate

from rl_algo_grpo.advantages import group_advantages, varied_groups, whitened_advantages, zero_group_fraction
from rl_algo_grpo.minibatches import Minibatch, skipped_fraction, with_logprobs
from rl_algo_grpo.shaping import completion_lengths, overlong_penalty, without_truncated

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
            batch: token columns ``loss_mask`` and ``sampled_logprobs``; sequence columns ``group``,
                ``reward``, with ``overlong.mode`` mask ``truncated``, and, unless it was 1, the
                sampling ``temperature``.

        Returns:
            means over the optimizer steps of ``train/…``, ``policy/…`` and ``mismatch/…`` (their
            maximum for ``max_…``), and ``rollout/…``. ``policy/…`` and ``mismatch/…`` are over the
            tokens of the sequences that are not skipped.
        """
        config, policy, temperature = self.config, models["policy"], sampling_temperature(batch)
        sources = self.logprob_sources(models)
        if config.kl_in_reward:  # needed before the advantages, so of every completion
            columns = {n: m.forward(batch, temperature=temperature)["logprobs"] for n, m in sources.items()}
            batch, sources = batch.with_columns(token=columns), {}

        rewards, length_metrics = self.shaped_rewards(batch)
        penalties, kl_metrics = self.kl_penalties(batch)
        advantages = self.advantages(batch, rewards, penalties)
        batch = batch.with_columns(token={"advantages": advantages})
        has_advantage = any_per_row(advantages != 0, batch.offsets)
        zero_fraction = zero_group_fraction(has_advantage, batch.sequence_columns["group"])
        if config.overlong.mode == "mask":
            batch = without_truncated(batch)

        minibatches = with_logprobs(self.minibatches(batch), sources, temperature=temperature)
        loss, reports = self.loss(temperature), []
        for _ in range(config.epochs):
            for minibatch in minibatches:
                metrics = policy.train(minibatch.batch, loss, scale=minibatch.scale)
                reports.append(minibatch.over_trained_tokens(metrics, zero_where_skipped=config.zero_where_skipped))
        return {
            **mean_metrics(reports),
            **length_metrics,
            **kl_metrics,
            "rollout/advantage_zero_fraction": zero_fraction,
            "train/skipped_sequences_fraction": skipped_fraction(minibatches),
        }

    def logprob_sources(self, models: Mapping[str, ModelHandle]) -> dict[str, ModelHandle]:
        """The log-probs that rewards or loss need, by column, and the model that has them."""
        config, sources = self.config, {}
        if config.uses_reference:
            sources["ref_logprobs"] = models["reference"]
        if config.updates_per_step > 1 or config.kl_in_reward:
            sources["old_logprobs"] = models["policy"]
        return sources

    def minibatches(self, batch: SequenceBatch) -> list[Minibatch]:
        """The minibatches of one epoch, without what has no gradient (``skip_zero_gradient``)."""
        config = self.config
        always_on = config.kl_in_loss or config.entropy_coefficient > 0
        return [
            Minibatch.of(part, skip=config.skip_zero_gradient, always_on=always_on)
            for part in batch.minibatches(config.minibatches)
            if len(part)  # dynamic sampling may leave fewer sequences than minibatches
        ]

    def shaped_rewards(self, batch: SequenceBatch) -> tuple[np.ndarray, Metrics]:
        """float64 [B]: the rewards, less what ``overlong.mode`` shape takes off for length."""
        rewards = batch.sequence_columns["reward"].astype(np.float64)
        overlong = self.config.overlong
        if overlong.mode != "shape" or overlong.max_tokens is None:
            return rewards, {}
        penalty = overlong_penalty(completion_lengths(batch), max_tokens=overlong.max_tokens, buffer=overlong.buffer)
        return rewards + penalty, {"rollout/overlong_penalty": float(penalty.mean())}

    def kl_penalties(self, batch: SequenceBatch) -> tuple[np.ndarray, Metrics]:
        """float64 [T]: the weighted KL of the old policy to the reference, 0 unless ``kl.in`` is reward."""
        if not self.config.kl_in_reward:
            return np.zeros(len(batch.tokens)), {}
        columns, mask = batch.token_columns, batch.token_columns["loss_mask"]
        gap = np.where(mask != 0, columns["ref_logprobs"] - columns["old_logprobs"], 0.0)
        kl = kl_estimate(gap, self.config.kl.estimator)
        return self.config.kl.coefficient * kl, {"policy/kl_reference": float((kl * mask).sum() / (mask.sum() or 1.0))}

    def advantages(self, batch: SequenceBatch, rewards: np.ndarray, penalties: np.ndarray) -> np.ndarray:
        """float32 [T] from rewards [B] and what each token costs [T]."""
        config = self.config
        if config.whitens:
            baseline = config.advantage == "reinforce++-baseline"
            return whitened_advantages(rewards, penalties, batch, group_baseline=baseline)
        if config.kl_in_reward:
            rewards = rewards - np.bincount(batch.sequence_ids, weights=penalties, minlength=len(batch))
        per_sequence = group_advantages(
            rewards,
            batch.sequence_columns["group"],
            scale=config.advantage_scale,
            ddof=config.advantage_ddof,
            leave_one_out=config.advantage == "rloo",
        )
        return np.repeat(per_sequence, batch.lengths)

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
