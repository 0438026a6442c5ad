"""What algorithms share: defaults of the contract, and what steps are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.model import OptimizerSpec
from rl_core.errors import RLError
from rl_core.metrics import Metrics
from rl_core.metrics import combine as combine  # offered here as well: algorithms need it
from rl_core.metrics import mean_metrics as mean_metrics

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.long_rows import LongRows


class AlgorithmBase:
    """Defaults for :class:`rl_core.contracts.algorithm.Algorithm`; add ``roles`` and ``step``.

    Attributes:
        config: the validated config it was built with.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def plan(self) -> BatchPlan:
        return self.config.plan()

    def optimizer(self, role: str, total_steps: int) -> OptimizerSpec:
        return self.config.optimizer.spec(self.config.learning_rate, total_steps)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        raise RLError(f"algorithm {self.config.name} trains on rollouts; it has no loss on data rows")

    def limit_rows(self, max_length: int) -> LongRows | None:
        return None

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, ModelHandle]) -> Metrics:
        raise RLError(
            f"algorithm {self.config.name} trains on rollouts; it has no held-out loss, use an evaluator that generates"
        )

    def start(self, directory: str) -> None:
        """Nothing to prepare."""

    def keep(self, batch: SequenceBatch) -> np.ndarray:
        return np.ones(len(batch), bool)

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: everything that changes is in the models and their optimizers."""


def sampling_temperature(batch: SequenceBatch) -> float:
    """The temperature all sequences were sampled at (column ``temperature``); 1 where it is not given.

    Raises:
        RLError: they differ; log-probs can be computed at one temperature only.
    """
    column = batch.sequence_columns.get("temperature")
    if column is None or not len(column):
        return 1.0
    if np.any(column != column[0]):
        raise RLError(
            f"a step's completions were sampled at different temperatures ({column.min():g} to {column.max():g}); "
            "log-probs can be computed at one only"
        )
    return float(column[0])
