"""The algorithm's own metrics on examples it does not train on."""

from __future__ import annotations

from rl_core.contracts.evaluator import EvaluationContext, EvaluationResult
from rl_core.errors import ConfigError, DataError

from rl_eval_heldout.config import LossConfig


class HeldOutLoss:
    """Encodes the rows as the algorithm does and asks it to evaluate them, without training."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def evaluate(self, context: EvaluationContext) -> EvaluationResult:
        """The metrics of ``algorithm.evaluate`` (``eval/loss``, …).

        Raises:
            ConfigError: the algorithm learns from rollouts and has no loss on examples.
            DataError: there are no rows, or one cannot be encoded.
        """
        if context.algorithm.plan().input != "examples":
            raise ConfigError(
                f"evaluator {self.config.name!r} measures the loss on given completions, "
                "but the algorithm learns from its own\n    use the evaluator 'accuracy' with this algorithm"
            )
        rows = context.rows[: self.config.limit]
        if not rows:
            raise DataError(f"evaluator {self.config.name!r}: eval_data has no rows")
        batch = context.algorithm.encode(rows, context.tokenizer)
        if not len(batch):
            raise DataError(f"evaluator {self.config.name!r}: none of the {len(rows)} rows of eval_data can be used")
        return EvaluationResult(context.algorithm.evaluate(batch, context.models))
