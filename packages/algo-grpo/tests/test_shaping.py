from __future__ import annotations

import numpy as np
import pytest
from rl_algo_grpo.advantages import completion_lengths, overlong_penalty, sum_to_go, without_truncated
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale


def test_the_overlong_penalty_by_hand():
    # L = 20, b = 4: nothing up to 16 tokens, then a quarter per token, the full 1 from 20 on
    lengths = np.array([1, 15, 16, 17, 18, 19, 20, 21, 100])
    penalty = overlong_penalty(lengths, max_tokens=20, buffer=4)
    assert penalty.tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1]


def test_a_buffer_of_the_whole_length_punishes_every_token():
    assert overlong_penalty(np.array([0, 5, 10]), max_tokens=10, buffer=10).tolist() == [0, -0.5, -1]


@pytest.fixture
def batch() -> SequenceBatch:
    """Prompts of one token; completions of two, one and three tokens, the last with one from a tool."""
    return SequenceBatch.from_lists(
        [[1, 2, 3], [1, 2], [1, 2, 3, 4]],
        token_columns={"loss_mask": [np.array(m, np.float32) for m in ([0, 1, 1], [0, 1], [0, 1, 0, 1])]},
        sequence_columns={"truncated": np.array([True, False, False])},
    )


def test_lengths_count_the_tokens_that_the_policy_chose(batch):
    assert completion_lengths(batch).tolist() == [2, 1, 2]
    assert completion_lengths(batch.select([])).tolist() == []


def test_truncated_sequences_leave_the_loss_but_not_the_batch(batch):
    kept = without_truncated(batch)
    assert kept.token_columns["loss_mask"].tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 1]
    assert kept.token_columns["loss_mask"].dtype == np.float32
    assert (Scale.of(batch).tokens, Scale.of(batch).sequences) == (5.0, 3.0)
    assert (Scale.of(kept).tokens, Scale.of(kept).sequences) == (3.0, 3.0)


def test_sums_to_go_end_with_their_sequence(batch):
    values = np.array([1.0, 2, 3, 10, 20, 100, 200, 300, 400])
    assert sum_to_go(values, batch).tolist() == [6, 5, 3, 30, 20, 1000, 900, 700, 400]
