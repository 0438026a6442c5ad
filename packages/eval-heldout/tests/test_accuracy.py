"""Held-out accuracy: sampling, scoring, and the metrics of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import ConfigError, DataError
from rl_eval_heldout.accuracy import Accuracy, metrics
from rl_eval_heldout.config import AccuracyConfig

ROWS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "5+6=", "answer": "11"},
    {"prompt": "7+8=", "answer": "14"},
    {"prompt": "2+2=", "answer": "9"},
]


def accuracy(**fields: Any) -> Accuracy:
    return Accuracy(AccuracyConfig(name="accuracy", **fields))


def test_greedy_completions_are_scored_and_counted(context: Callable, adder) -> None:
    result = accuracy().evaluate(context(ROWS))
    assert result.metrics == {
        "eval/accuracy": 0.5,
        "eval/reward_mean": 0.5,
        "eval/completion_tokens_mean": 2.5,
        "eval/truncated_fraction": 0.0,
    }
    assert adder.sampling == SamplingParams(n=1, max_new_tokens=64, temperature=0.0, stop_token_ids=(1,))
    assert adder.seed == 7


def test_the_samples_are_the_first_rows(context: Callable) -> None:
    result = accuracy(samples=2).evaluate(context(ROWS))
    assert result.samples == [
        {"prompt": "1+1=", "completion": "2", "answer": "2", "reward": 1.0},
        {"prompt": "5+6=", "completion": "11", "answer": "11", "reward": 1.0},
    ]


def test_several_completions_give_pass_at_n(context: Callable) -> None:
    result = accuracy(n=2, temperature=1.0).evaluate(context(ROWS))
    # Right are the first of rows 0 and 1, and the second of row 2 (7+8-1): 3 of 8 completions, 3 of 4 rows.
    assert result.metrics["eval/accuracy"] == 3 / 8
    assert result.metrics["eval/pass_at_n"] == 3 / 4


def test_completions_that_reach_the_limit_are_counted_as_truncated(context: Callable) -> None:
    result = accuracy(max_new_tokens=2).evaluate(context(ROWS))
    assert result.metrics["eval/truncated_fraction"] == 0.5
    assert result.metrics["eval/completion_tokens_mean"] == 2.0


def test_completions_without_a_score_count_nowhere(context: Callable) -> None:
    def score(samples: list[Any]) -> np.ndarray:
        right = [s.completion == s.row["answer"] for s in samples]
        return np.where([s.row["prompt"] == "5+6=" for s in samples], np.nan, right).astype(np.float32)

    result = accuracy(n=2, temperature=1.0).evaluate(context(ROWS, score=score))
    # Of the three other rows, right are the first of row 0 and the second of row 2.
    assert result.metrics["eval/accuracy"] == result.metrics["eval/reward_mean"] == pytest.approx(2 / 6)
    assert result.metrics["eval/pass_at_n"] == 2 / 3
    nothing = accuracy().evaluate(context(ROWS, score=lambda samples: np.full(len(samples), np.nan)))
    assert sorted(nothing.metrics) == ["eval/completion_tokens_mean", "eval/truncated_fraction"]


def test_limit_takes_rows_from_the_start(context: Callable) -> None:
    assert accuracy(limit=2).evaluate(context(ROWS)).metrics["eval/accuracy"] == 1.0


def test_the_threshold_is_compared_in_float32() -> None:
    batch = SequenceBatch.from_lists(
        [[1, 2], [1, 2]],
        sequence_columns={"request": [0, 1], "prompt_length": [1, 1], "truncated": [False, False]},
    )
    rewards = np.array([0.7, 0.6], np.float32)
    assert metrics(batch, rewards, threshold=0.7, n=1)["eval/accuracy"] == 0.5


def test_eval_data_without_rows_is_refused(context: Callable) -> None:
    with pytest.raises(DataError, match=r"^evaluator 'accuracy': eval_data has no rows$"):
        accuracy().evaluate(context([]))


def test_conversations_count_the_models_tokens_and_turns() -> None:
    batch = SequenceBatch.from_lists(
        [[1, 2, 3, 4, 5, 6], [1, 2]],
        sequence_columns={
            "request": [0, 1],
            "prompt_length": [1, 1],
            "truncated": [False, False],
            "turns": [2, 1],
            "environment_tokens": [2, 0],
        },
    )
    found = metrics(batch, [1.0, 0.0], threshold=1.0, n=1)
    assert (found["eval/turns_mean"], found["eval/completion_tokens_mean"]) == (1.5, 2.0)


def test_it_needs_a_generator_and_rewards(context: Callable) -> None:
    with pytest.raises(ConfigError, match=r"^evaluator 'accuracy' needs a generator section$"):
        accuracy().evaluate(context(ROWS, complete=None))
    with pytest.raises(ConfigError, match=r"^evaluator 'accuracy' needs a rewards section$"):
        accuracy().evaluate(context(ROWS, score=None))
