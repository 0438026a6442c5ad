"""Supervised fine-tuning: maximum likelihood of the tokens the data marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan, Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import OptimizerSpec, Role

from rl_algo_sft_rm.encoding import RowEncoder

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.model import Model

    from rl_algo_sft_rm.config import SftConfig

LOSS = LossSpec("rl_algo_sft_rm.loss:negative_log_likelihood")
_LARGEST_EXPONENT = 700.0  # exp() of more overflows a double


class Sft:
    """Minimise ``- Σ log π(y_t) · w_t / Σ w_t``, one optimizer step a batch."""

    def __init__(self, config: SftConfig) -> None:
        self.config = config
        self._rows = RowEncoder(config)

    def roles(self) -> Sequence[Role]:
        return (Role("policy", trainable=True),)

    def plan(self) -> BatchPlan:
        return self.config.plan()

    def optimizer(self, role: str, total_steps: int) -> OptimizerSpec:
        return self.config.optimizer.spec(self.config.learning_rate, total_steps)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        """Rows to sequences with ``loss_mask``; see :class:`rl_algo_sft_rm.encoding.RowEncoder`."""
        return self._rows.encode(rows, tokenizer)

    def step(self, batch: SequenceBatch, models: Mapping[str, Model]) -> Metrics:
        """One optimizer step; ``train/loss``, ``train/grad_norm``, ``train/learning_rate``."""
        metrics = models["policy"].train(batch, LOSS)
        return {f"train/{name}": value for name, value in metrics.items()}

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, Model]) -> Metrics:
        """``eval/loss`` (nats per token) and ``eval/perplexity`` = exp(loss)."""
        loss = models["policy"].evaluate(batch, LOSS)["loss"]
        return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, _LARGEST_EXPONENT))}

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: everything that changes is in the model and its optimizer."""
