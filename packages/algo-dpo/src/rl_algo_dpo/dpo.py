"""Direct preference optimization (Rafailov et al. 2023) and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_algo_common.encoding import RowsAlgorithm
from rl_core.algorithm import mean_metrics
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Metrics
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.model import Role

from rl_algo_dpo.kto import encode_labelled, kl_baseline
from rl_algo_dpo.reference import ReferenceLogprobs

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle
    from rl_core.contracts.tokenizer import Tokenizer

    from rl_algo_dpo.config import DpoConfig


class Dpo(RowsAlgorithm):
    """Makes the preferred completion of a pair more likely than the other, compared with a frozen reference."""

    config: DpoConfig

    def __init__(self, config: DpoConfig) -> None:
        super().__init__(config)
        self._reference = ReferenceLogprobs()

    def roles(self) -> Sequence[Role]:
        policy = Role("policy", trainable=True)
        if not self.config.needs_reference:
            return (policy,)
        path = self.config.reference.path if self.config.reference else None
        return policy, Role("reference", trainable=False, path=path)

    def start(self, directory: str) -> None:
        """Reference log-probs are kept below ``directory`` from now on."""
        self._reference.open(directory)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        """Pairs (columns ``unit`` and ``chosen``), or labelled completions for KTO (column ``desirable``)."""
        if self.config.loss == "kto":
            return encode_labelled(rows, tokenizer, encoder=self.rows)
        return self.rows.pairs(rows, tokenizer)

    def step(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """One optimizer step; ``train/loss`` and what :mod:`rl_algo_dpo.losses` reports."""
        batch = self.prepare(batch, models)
        return mean_metrics([models["policy"].train(batch, self.loss(batch))])

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        """The same as ``eval/…`` on held-out rows, without training."""
        batch = self.prepare(batch, models)
        return mean_metrics([models["policy"].evaluate(batch, self.loss(batch))], prefix="eval")

    def prepare(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> SequenceBatch:
        """``batch`` with what the loss reads from frozen models: ``ref_logprob``, and for KTO ``kl_baseline``."""
        columns: dict[str, np.ndarray] = {}
        if self.config.needs_reference:
            columns["ref_logprob"] = self._reference(batch, models["reference"])
        if self.config.loss == "kto":
            baseline = kl_baseline(batch, models, self.config.loss_options()["beta"])
            columns["kl_baseline"] = np.full(len(batch), baseline, np.float32)
        return batch.with_columns(sequence=columns)

    def loss(self, batch: SequenceBatch) -> LossSpec:
        """The loss of an optimizer step on ``batch``."""
        numbers = self.config.loss_options()
        if self.config.loss == "kto":
            desirable = int(batch.sequence_columns["desirable"].sum())
            counts = {"desirable": desirable, "undesirable": len(batch) - desirable}
            return LossSpec("rl_algo_dpo.losses:kto_loss", options={**numbers, **counts})
        options = {"loss": self.config.loss, "sft_coefficient": self.config.sft_coefficient, **numbers}
        return LossSpec("rl_algo_dpo.losses:pair_loss", options=options)
