"""Proximal policy optimization (Schulman et al. 2017) for language models (Ouyang et al. 2022, InstructGPT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.algorithm import AlgorithmBase, mean_metrics, sampling_temperature
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import OptimizerSpec, Role
from rl_core.statistics import kl_estimate, whiten

from rl_algo_ppo.advantages import explained_variance, generalized_advantages, token_rewards
from rl_algo_ppo.kl_controller import KlController

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle

    from rl_algo_ppo.config import PpoConfig


class Ppo(AlgorithmBase):
    """Raises the probability of tokens after which more reward came than the value model had predicted."""

    config: PpoConfig

    def __init__(self, config: PpoConfig) -> None:
        super().__init__(config)
        kl = config.kl
        self._controller = KlController(kl.coefficient, target=kl.target, horizon=kl.horizon)

    def roles(self) -> Sequence[Role]:
        policy = Role("policy", trainable=True)
        value = Role("value", trainable=True, head="scalar", path=self.config.value.path)
        return (policy, value, Role("reference", trainable=False)) if self._penalises_kl else (policy, value)

    def optimizer(self, role: str, total_steps: int) -> OptimizerSpec:
        section = self.config.value if role == "value" else self.config
        return section.optimizer.spec(section.learning_rate, total_steps)

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """``epochs × minibatches`` optimizer steps of policy and value model on rollouts with their rewards.

        Args:
            batch: token columns ``loss_mask`` and ``sampled_logprobs``; sequence columns ``reward``,
                ``truncated`` (with ``bootstrap_truncated``) and, unless it was 1, the sampling ``temperature``.

        Returns:
            means over the optimizer steps of ``train/…``, ``policy/…``, ``value/…`` and ``mismatch/…`` (their
            maximum for ``max_…``); of the whole step ``value/explained_variance`` and, with a KL penalty,
            ``policy/kl_…``.
        """
        policy, value, config = models["policy"], models["value"], self.config
        temperature = sampling_temperature(batch)

        if config.updates_per_step > 1 or self._penalises_kl:
            old = policy.forward(batch, temperature=temperature)["logprobs"]
            batch = batch.with_columns(token={"old_logprobs": old})
        kl = self._kl_to_reference(batch, models, temperature)
        values, terminal_values = self._values(batch, value)
        mask, sequence_ids = batch.token_columns["loss_mask"], batch.sequence_ids

        rewards = token_rewards(
            batch.sequence_columns["reward"], mask, sequence_ids, penalties=self._controller.coefficient * kl
        )
        advantages, returns = generalized_advantages(
            rewards,
            values,
            mask,
            sequence_ids,
            gamma=config.gamma,
            lam=config.lam,
            terminal_values=terminal_values,
        )
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)
        batch = batch.with_columns(token={"advantages": advantages, "old_values": values, "returns": returns})

        policy_loss, value_loss = self.policy_loss(temperature), self.value_loss()
        updates = []
        for epoch in range(config.epochs):
            for minibatch in batch.minibatches(config.minibatches, seed=epoch):
                if len(minibatch):  # dropped completions may leave fewer than minibatches
                    updates.append(policy.train(minibatch, policy_loss) | _of_value(value.train(minibatch, value_loss)))
        return {
            **mean_metrics(updates),
            **self._adapt_coefficient(kl, batch),
            "value/explained_variance": explained_variance(values, returns, mask),
        }

    def policy_loss(self, temperature: float) -> LossSpec:
        """The policy's loss in every optimizer step, for log-probs at ``temperature``."""
        return self.config.loss_spec("rl_algo_ppo.loss:policy_loss", temperature=temperature)

    def value_loss(self) -> LossSpec:
        """The value model's loss in every optimizer step."""
        return LossSpec(
            function="rl_algo_ppo.loss:value_loss", options={"clip": self.config.value.clip}, outputs=("values",)
        )

    def state(self) -> Mapping[str, Any]:
        return {"kl_coefficient": self._controller.coefficient} if self.config.kl.controller == "adaptive" else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.config.kl.controller == "adaptive":
            self._controller.coefficient = float(state["kl_coefficient"])

    @property
    def _penalises_kl(self) -> bool:
        return self.config.kl.coefficient > 0

    def _values(self, batch: SequenceBatch, value: ModelHandle) -> tuple[np.ndarray, np.ndarray | None]:
        """V before each token, [T], and after the last one, [B], where a completion was cut off (if that counts)."""
        if not self.config.bootstrap_truncated:
            return value.forward(batch, ("values",))["values"], None
        outputs = value.forward(batch, ("values", "scores"))
        return outputs["values"], np.where(batch.sequence_columns["truncated"], outputs["scores"], 0.0)

    def _kl_to_reference(
        self, batch: SequenceBatch, models: Mapping[str, ModelHandle], temperature: float
    ) -> np.ndarray:
        """float64 [T]: KL(π_old ‖ π_ref) of every token, 0 where the reference is not used."""
        if not self._penalises_kl:
            return np.zeros(len(batch.tokens))
        reference = models["reference"].forward(batch, temperature=temperature)["logprobs"]
        columns = batch.token_columns
        gap = np.where(columns["loss_mask"] != 0, reference - columns["old_logprobs"], 0.0)
        return kl_estimate(gap, self.config.kl.estimator)

    def _adapt_coefficient(self, kl: np.ndarray, batch: SequenceBatch) -> Metrics:
        """Show the controller this step's KL; returns the metrics, with the coefficient that was used."""
        if not self._penalises_kl:
            return {}
        used, per_sequence = self._controller.coefficient, float(kl.sum()) / len(batch)
        self._controller.update(per_sequence, sequences=len(batch))
        return {
            "policy/kl_reference": float(kl.sum()) / max(int(np.count_nonzero(batch.token_columns["loss_mask"])), 1),
            "policy/kl_per_sequence": per_sequence,
            "policy/kl_coefficient": used,
        }


def _of_value(metrics: Mapping[str, float]) -> dict[str, float]:
    """Names without a section (``loss``, ``grad_norm``, ``learning_rate``) become ``value_loss`` and so on."""
    return {name if "/" in name else f"value_{name}": number for name, number in metrics.items()}
