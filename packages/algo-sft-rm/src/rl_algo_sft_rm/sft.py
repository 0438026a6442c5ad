"""Supervised fine-tuning: maximum likelihood of the tokens the data marks."""

from __future__ import annotations

import math
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

    from rl_algo_sft_rm.config import SftConfig

NLL = LossSpec("rl_algo_sft_rm.losses:negative_log_likelihood")
_LARGEST_EXPONENT = 700.0  # exp() of more overflows a double


class Sft(RowsAlgorithm):
    """Minimise ``- Σ log π(y_t) · w_t / Σ w_t``, one optimizer step a batch."""

    config: SftConfig

    def __init__(self, config: SftConfig) -> None:
        super().__init__(config)
        self._loss = training_loss(config)

    def roles(self) -> Sequence[Role]:
        return (Role("policy", trainable=True),)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        """Rows to sequences with ``loss_mask``; see :meth:`rl_algo_common.encoding.RowEncoder.examples`."""
        return self.rows.examples(rows, tokenizer, loss_on=self.config.loss_on)

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """One optimizer step; ``train/loss``, ``train/grad_norm``, ``train/learning_rate``, and with
        label smoothing or z-loss ``train/nll`` (and ``train/z_loss``)."""
        return mean_metrics([models["policy"].train(batch, self._loss)])

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """``eval/loss``, the negative log-likelihood in nats per token whatever is trained with, and
        ``eval/perplexity`` = exp(loss)."""
        loss = models["policy"].evaluate(batch, NLL)["loss"]
        return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, _LARGEST_EXPONENT))}


def training_loss(config: SftConfig) -> LossSpec:
    """The loss of ``config``; model outputs that nothing reads are not asked for."""
    wanted = {"mean_logprobs": config.label_smoothing, "logsumexp": config.z_loss}
    extra = tuple(name for name, coefficient in wanted.items() if coefficient)
    if not extra:
        return NLL
    return LossSpec(
        "rl_algo_sft_rm.losses:smoothed_cross_entropy",
        options={"label_smoothing": config.label_smoothing, "z_loss": config.z_loss},
        outputs=("logprobs", *extra),
    )
