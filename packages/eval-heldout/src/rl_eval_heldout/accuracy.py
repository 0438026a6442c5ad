"""Accuracy of completions of held-out prompts, by the configured rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.evaluator import EvaluationContext, EvaluationResult
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.tokenizer import end_token_ids
from rl_core.errors import ConfigError, DataError
from rl_core.samples import completion_tokens, sample_rows

from rl_eval_heldout.config import AccuracyConfig


class Accuracy:
    """Samples ``n`` completions per row (greedy by default) and scores them with the run's rewards.

    With an environment a completion is a whole conversation, held as in training.
    """

    def __init__(self, config: AccuracyConfig) -> None:
        self.config = config

    def evaluate(self, context: EvaluationContext) -> EvaluationResult:
        """``eval/accuracy`` and what goes with it, and the first completions.

        Raises:
            ConfigError: there is no generator or there are no rewards.
            DataError: there are no rows, or one has no prompt.
        """
        if context.complete is None or context.score is None:
            lacking = "generator" if context.complete is None else "rewards"
            raise ConfigError(f"evaluator {self.config.name!r} needs a {lacking} section")
        rows = context.rows[: self.config.limit]
        if not rows:
            raise DataError(f"evaluator {self.config.name!r}: eval_data has no rows")
        batch, samples = context.complete(rows, self._sampling(context), context.seed)
        rewards = np.asarray(context.score(samples), np.float64)
        shown = self.config.samples
        return EvaluationResult(
            metrics(batch, rewards, threshold=self.config.threshold, n=self.config.n),
            sample_rows(samples[:shown], rewards[:shown]),
        )

    def _sampling(self, context: EvaluationContext) -> SamplingParams:
        config = self.config
        return SamplingParams(
            n=config.n,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop=config.stop,
            stop_token_ids=end_token_ids(context.tokenizer),
        )


def metrics(
    batch: SequenceBatch, rewards: Sequence[float] | np.ndarray, *, threshold: float, n: int
) -> dict[str, float]:
    """Metrics of scored completions.

    Args:
        batch: completions as a generator returns them (columns ``request``, ``prompt_length``, ``truncated``), or
            conversations (``turns``, ``environment_tokens``).
        rewards: [B], one per completion; NaN for one that a failed reward dropped, which then counts nowhere but in
            what is said of lengths.
        threshold: a reward of at least this is correct.
        n: completions per prompt; above 1 ``eval/pass_at_n`` is the fraction of prompts with a correct one.
    """
    rewards = np.asarray(rewards, np.float64)
    scored = ~np.isnan(rewards)
    # In float32, as rewards arrive: 0.7 there is less than 0.7 in float64.
    correct = rewards.astype(np.float32) >= np.float32(threshold)
    columns = batch.sequence_columns
    found = {
        "eval/completion_tokens_mean": float(completion_tokens(batch).mean()),
        "eval/truncated_fraction": float(columns["truncated"].mean()),
    }
    if scored.any():
        found |= {
            "eval/accuracy": float(correct[scored].mean()),
            "eval/reward_mean": float(rewards[scored].mean()),
        }
    if "turns" in columns:
        found["eval/turns_mean"] = float(columns["turns"].mean())
    if n > 1 and scored.any():
        solved = np.bincount(columns["request"], weights=correct) > 0
        asked = np.bincount(columns["request"], weights=scored) > 0
        found["eval/pass_at_n"] = float(solved[asked].mean())
    return found
