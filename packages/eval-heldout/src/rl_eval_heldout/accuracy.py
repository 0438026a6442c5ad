"""How often completions of held-out prompts are right, by the configured rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.data import Row
from rl_core.contracts.evaluator import EvaluationContext, EvaluationResult
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import ConfigError, DataError
from rl_core.rollout.samples import sample_rows, to_samples

from rl_eval_heldout.config import AccuracyConfig


class Accuracy:
    """Samples ``n`` completions per row (greedy by default) and scores them with the run's rewards."""

    def __init__(self, config: AccuracyConfig) -> None:
        self.config = config

    def evaluate(self, context: EvaluationContext) -> EvaluationResult:
        """``eval/accuracy`` and what goes with it, and the first completions.

        Raises:
            ConfigError: there is no generator or there are no rewards.
            DataError: there are no rows, or one has no prompt.
        """
        if context.generate is None or context.score is None:
            lacking = "generator" if context.generate is None else "rewards"
            raise ConfigError(f"evaluator {self.config.name!r} needs a {lacking} section")
        rows = context.rows[: self.config.limit]
        if not rows:
            raise DataError(f"evaluator {self.config.name!r}: eval_data has no rows")
        prompts = [self._prompt(row, context) for row in rows]
        batch = context.generate(prompts, self._sampling(context), context.seed)
        samples = to_samples(batch, rows, context.tokenizer)
        rewards = np.asarray(context.score(samples), np.float64)
        shown = self.config.samples
        return EvaluationResult(
            metrics(batch, rewards, threshold=self.config.threshold, n=self.config.n),
            sample_rows(samples[:shown], rewards[:shown]),
        )

    def _prompt(self, row: Row, context: EvaluationContext) -> np.ndarray:
        where = row.get("__where__", "a row of eval_data")
        if row.get("prompt") is None:
            columns = ", ".join(name for name in row if not name.startswith("__"))
            raise DataError(
                f"{where}: there is no 'prompt' to complete (columns: {columns})\n"
                "    map one in the eval_data section, e.g. prompt: question"
            )
        tokens = context.tokenizer.encode_prompt(row["prompt"])
        if not len(tokens):
            raise DataError(f"{where}: the prompt is empty")
        return tokens

    def _sampling(self, context: EvaluationContext) -> SamplingParams:
        config = self.config
        end = context.tokenizer.special_tokens.get("eos_token_id")
        return SamplingParams(
            n=config.n,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop=config.stop,
            stop_token_ids=() if end is None else (end,),
        )


def metrics(
    batch: SequenceBatch, rewards: Sequence[float] | np.ndarray, *, threshold: float, n: int
) -> dict[str, float]:
    """Metrics of scored completions.

    Args:
        batch: completions as a generator returns them (columns ``request``, ``prompt_length``, ``truncated``).
        rewards: [B], one per completion.
        threshold: a reward of at least this is correct.
        n: completions per prompt; above 1 ``eval/pass_at_n`` is the fraction of prompts with a correct one.
    """
    rewards = np.asarray(rewards, np.float64)
    # In float32, as rewards arrive: 0.7 there is less than 0.7 in float64.
    correct = rewards.astype(np.float32) >= np.float32(threshold)
    columns = batch.sequence_columns
    found = {
        "eval/accuracy": float(correct.mean()),
        "eval/reward_mean": float(rewards.mean()),
        "eval/completion_tokens_mean": float((batch.lengths - columns["prompt_length"]).mean()),
        "eval/truncated_fraction": float(columns["truncated"].mean()),
    }
    if n > 1:
        solved = np.bincount(columns["request"], weights=correct) > 0
        found["eval/pass_at_n"] = float(solved.mean())
    return found
