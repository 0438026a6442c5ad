"""What algorithms share: defaults of the contract, and how several updates become one line of metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan, Metrics
from rl_core.contracts.model import OptimizerSpec
from rl_core.errors import RLError

if TYPE_CHECKING:
    from rl_core.config.sections import AlgorithmConfig
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.long_rows import LongRows
    from rl_core.model import Model


class AlgorithmBase:
    """Defaults for :class:`rl_core.contracts.algorithm.Algorithm`; add ``roles`` and ``step``.

    Attributes:
        config: the validated config it was built with.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def plan(self) -> BatchPlan:
        return self._settings.plan()

    def optimizer(self, role: str, total_steps: int) -> OptimizerSpec:
        return self._settings.optimizer.spec(self._settings.learning_rate, total_steps)

    def encode(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> SequenceBatch:
        raise RLError(f"algorithm {self._settings.name} trains on rollouts; it has no loss on data rows")

    def limit_rows(self, max_length: int) -> LongRows | None:
        return None

    def begin(self, batch: SequenceBatch, models: Mapping[str, Model]) -> Callable[[], Metrics] | None:
        return None

    def evaluate(self, batch: SequenceBatch, models: Mapping[str, Model]) -> Metrics:
        raise RLError(
            f"algorithm {self._settings.name} trains on rollouts; it has no held-out loss, "
            "use an evaluator that generates"
        )

    def start(self, directory: str) -> None:
        """Nothing to prepare."""

    def keep(self, batch: SequenceBatch) -> np.ndarray:
        return np.ones(len(batch), bool)

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: everything that changes is in the models and their optimizers."""

    @property
    def _settings(self) -> AlgorithmConfig:
        return self.config


def can_begin(algorithm: Any) -> bool:
    """Whether the ``begin`` of an algorithm belongs to its ``step``: one that is inherited does not know of another
    ``step`` in a subclass."""
    for cls in type(algorithm).__mro__:
        if "begin" in vars(cls):
            return cls is not AlgorithmBase
        if "step" in vars(cls):
            return False
    return False


def combine(name: str, a: float, b: float) -> float:
    """Join two partial values of one metric by the naming rule of :class:`rl_core.contracts.backend.LossSpec`."""
    last = name.rpartition("/")[2]
    if last.startswith("max_"):
        return max(a, b)
    if last.startswith("min_"):
        return min(a, b)
    return a + b


def mean_metrics(updates: Sequence[Mapping[str, float]], *, prefix: str = "train") -> Metrics:
    """One line for several optimizer steps: means, but extremes for names whose last part starts with
    ``max_`` or ``min_``; names without a section get ``prefix``."""
    joined: Metrics = {}
    for name in updates[0]:
        values = [update[name] for update in updates]
        last = name.rpartition("/")[2]
        value = max(values) if last.startswith("max_") else min(values) if last.startswith("min_") else np.mean(values)
        joined[name if "/" in name else f"{prefix}/{name}"] = float(value)
    return joined


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
