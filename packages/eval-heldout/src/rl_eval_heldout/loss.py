"""The algorithm's own metrics on examples it does not train on."""

from __future__ import annotations

import logging

from rl_core.contracts.evaluator import EvaluationContext, EvaluationResult
from rl_core.data.feed import join_rows
from rl_core.errors import ConfigError, DataError

from rl_eval_heldout.config import LossConfig

logger = logging.getLogger(__name__)


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
        parts = [context.algorithm.encode([row], context.tokenizer) for row in rows]
        used = [part for part in parts if len(part)]
        if not used:
            raise DataError(f"evaluator {self.config.name!r}: none of the {len(rows)} rows of eval_data can be used")
        if len(used) < len(rows):
            level = logging.INFO if context.step else logging.WARNING  # the same ones every time
            left_out = len(rows) - len(used)
            logger.log(level, "%d of %d rows of eval_data are too long and left out of the loss", left_out, len(rows))
        return EvaluationResult(context.algorithm.evaluate(join_rows(used), context.models))
