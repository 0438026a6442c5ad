"""Proximal policy optimization (Schulman et al. 2017) for language models (Ouyang et al. 2022, InstructGPT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_algo_common.kl import kl_to_reference
from rl_algo_common.rollouts import with_logprobs
from rl_core.algorithm import AlgorithmBase, mean_metrics, sampling_temperature
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import OptimizerSpec, Role

from rl_algo_ppo.advantages import explained_variance, with_advantages
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
        return (policy, value, Role("reference", trainable=False)) if self.config.uses_reference else (policy, value)

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
        if config.updates_per_step > 1 or config.uses_reference:
            batch = with_logprobs(batch, {"old_logprobs": policy}, temperature=temperature)
        kl = self._kl(batch, models, temperature)
        batch = with_advantages(batch, value, self._controller.coefficient * kl, config)
        policy_loss, value_loss, updates = self.policy_loss(temperature), self.value_loss(), []
        for epoch in range(config.epochs):
            for minibatch in batch.minibatches(config.minibatches, seed=epoch):
                if len(minibatch):  # dropped completions may leave fewer than minibatches
                    updates.append(policy.train(minibatch, policy_loss) | _of_value(value.train(minibatch, value_loss)))
        columns, metrics = batch.token_columns, mean_metrics(updates)
        if config.uses_reference:
            metrics |= self._controller.observe(kl, columns["loss_mask"], sequences=len(batch))
        fit = explained_variance(columns["old_values"], columns["returns"], columns["loss_mask"])
        return metrics | {"value/explained_variance": fit}

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

    def _kl(self, batch: SequenceBatch, models: Mapping[str, ModelHandle], temperature: float) -> np.ndarray:
        """float64 [T]: KL(π_old ‖ π_ref) of every token, 0 where the reference is not used."""
        if not self.config.uses_reference:
            return np.zeros(len(batch.tokens))
        batch = with_logprobs(batch, {"ref_logprobs": models["reference"]}, temperature=temperature)
        return kl_to_reference(batch, self.config.kl.estimator)


def _of_value(metrics: Mapping[str, float]) -> dict[str, float]:
    """Names without a section (``loss``, ``grad_norm``, ``learning_rate``) become ``value_loss`` and so on."""
    return {name if "/" in name else f"value_{name}": number for name, number in metrics.items()}
