"""Reward models: a scalar head that ranks the chosen completion above the rejected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_algo_common.encoding import RowsAlgorithm
from rl_core.algorithm import mean_metrics
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import Role

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle
    from rl_core.contracts.tokenizer import Tokenizer

    from rl_algo_sft_rm.config import RmConfig


class RewardModel(RowsAlgorithm):
    """Minimise ``- mean log σ(r_c - r_r - m) + λ mean (r_c + r_r)²`` over pairs, one optimizer step a batch."""

    config: RmConfig

    def __init__(self, config: RmConfig) -> None:
        super().__init__(config)
        column = config.margin if isinstance(config.margin, str) else None
        self._numbers = {"margin": column} if column else {}
        self._loss = LossSpec(
            "rl_algo_sft_rm.losses:bradley_terry",
            options={
                "margin": 0.0 if column else config.margin,
                "center_rewards_coefficient": config.center_rewards_coefficient,
            },
            outputs=("scores",),
        )

    def roles(self) -> Sequence[Role]:
        return (Role("reward", trainable=True, head="scalar"),)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        """Two sequences a row with ``unit`` and ``chosen``, and ``margin`` where rows have their own; see
        :meth:`rl_algo_common.encoding.RowEncoder.pairs`. A sequence ends where its score is read."""
        return self.rows.pairs(rows, tokenizer, numbers=self._numbers)

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """One optimizer step; ``train/`` loss, preference_accuracy, margin, score_mean, grad_norm, learning_rate, and
        with a centring coefficient centering."""
        return mean_metrics([models["reward"].train(batch, self._loss)])

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """``eval/`` loss, preference_accuracy, margin, score_mean (and centering) of held-out pairs."""
        return mean_metrics([models["reward"].evaluate(batch, self._loss)], prefix="eval")
