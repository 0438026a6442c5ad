"""Group relative policy optimization (Shao et al. 2024, DeepSeekMath, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan, Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import OptimizerSpec, Role
from rl_core.errors import RLError

from rl_algo_grpo.advantages import flat_group_fraction, group_advantages

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.model import Model

    from rl_algo_grpo.config import GrpoConfig


class Grpo:
    """Raises the probability of completions that beat the others of their prompt."""

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config

    def roles(self) -> Sequence[Role]:
        policy = Role("policy", trainable=True)
        return (policy, Role("reference", trainable=False)) if self.config.kl.coefficient > 0 else (policy,)

    def plan(self) -> BatchPlan:
        return self.config.plan()

    def optimizer(self, role: str, total_steps: int) -> OptimizerSpec:
        return self.config.optimizer.spec(self.config.learning_rate, total_steps)

    def step(self, batch: SequenceBatch, models: Mapping[str, Model]) -> Metrics:
        """``epochs × minibatches`` optimizer steps on rollouts with their rewards.

        Args:
            batch: token columns ``loss_mask`` and ``sampled_logprobs``; sequence columns ``group``,
                ``reward`` and, unless it was 1, the sampling ``temperature``.

        Returns:
            means over the optimizer steps of ``train/…``, ``policy/…`` and ``mismatch/…`` (their
            maximum for ``max_…``), and ``rollout/advantage_zero_fraction``.
        """
        policy, temperature = models["policy"], sampling_temperature(batch)
        rewards, groups = batch.sequence_columns["reward"], batch.sequence_columns["group"]

        advantages = group_advantages(
            rewards, groups, scale=self.config.advantage_scale, ddof=self.config.advantage_ddof
        )
        columns = {"advantages": advantages[batch.sequence_ids]}
        if self.config.kl.coefficient > 0:
            columns["ref_logprobs"] = models["reference"].forward(batch, temperature=temperature)["logprobs"]
        if self.config.updates_per_step > 1:
            columns["old_logprobs"] = policy.forward(batch, temperature=temperature)["logprobs"]
        batch = batch.with_columns(token=columns)

        loss = self.loss(temperature)
        updates = []
        for _ in range(self.config.epochs):
            for minibatch in batch.minibatches(self.config.minibatches):
                updates.append(policy.train(minibatch, loss))
        return {
            **mean_metrics(updates),
            "rollout/advantage_zero_fraction": flat_group_fraction(rewards, groups),
        }

    def loss(self, temperature: float) -> LossSpec:
        """The loss of every optimizer step, for log-probs at ``temperature``."""
        config = self.config
        return LossSpec(
            function="rl_algo_grpo.loss:policy_loss",
            options={
                "clip_low": config.clip_low,
                "clip_high": config.clip_high,
                "dual_clip": config.dual_clip,
                "reduction": config.loss_reduction,
                "constant_length": config.constant_length,
                "kl_coefficient": config.kl.coefficient,
                "kl_estimator": config.kl.estimator,
                # With a single update the log-probs it computes are the old policy's: no extra forward pass.
                "on_policy": config.updates_per_step == 1,
                "entropy_metric": config.entropy_metric,
            },
            outputs=("logprobs", "entropy") if config.entropy_metric else ("logprobs",),
            temperature=temperature,
        )

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        raise RLError("algorithm grpo trains on rollouts; it has no loss on data rows")

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, Model]) -> Metrics:
        raise RLError("algorithm grpo trains on rollouts; it has no held-out loss, use an evaluator that generates")

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: everything that changes is in the model and its optimizer."""


def sampling_temperature(batch: SequenceBatch) -> float:
    """The temperature all sequences were sampled at (column ``temperature``); 1 where it is not given."""
    column = batch.sequence_columns.get("temperature")
    if column is None or not len(column):
        return 1.0
    if np.any(column != column[0]):
        raise RLError(
            f"a step's completions were sampled at different temperatures ({column.min():g} to {column.max():g}); "
            "log-probs can be computed at one only"
        )
    return float(column[0])


def mean_metrics(updates: Sequence[Mapping[str, float]]) -> Metrics:
    """Means over optimizer steps, maxima for names whose last part starts with ``max_``; bare names get ``train/``."""
    joined = {}
    for name in updates[0]:
        values = [update[name] for update in updates]
        is_maximum = name.rpartition("/")[2].startswith("max_")
        joined[name if "/" in name else f"train/{name}"] = max(values) if is_maximum else sum(values) / len(values)
    return joined
