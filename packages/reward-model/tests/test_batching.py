"""Which sequences are scored together."""

from __future__ import annotations

import numpy as np
import pytest
from rl_reward_model.batching import batches, distinct, shares


def test_equal_sequences_are_kept_once_and_found_again() -> None:
    sequences = [np.array(s, np.int32) for s in ([1, 2], [3], [1, 2], [1], [3])]
    kept, places = distinct(sequences)
    assert [s.tolist() for s in kept] == [[1, 2], [3], [1]]
    assert places.tolist() == [0, 1, 0, 2, 1]


def test_shares_are_even_in_number_and_in_tokens() -> None:
    lengths = [5, 90, 20, 60, 10, 80, 30, 70]
    parts = shares(lengths, 2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(8))
    assert [[lengths[i] for i in part] for part in parts] == [[90, 70, 30, 10], [80, 60, 20, 5]]
    assert [len(part) for part in shares([1, 1], 3)] == [1, 1, 0]


@pytest.mark.parametrize("batch_tokens", [1, 10, 64, 1000])
def test_batches_hold_every_sequence_once_within_the_budget(batch_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 50)
    found = batches(lengths, batch_tokens)
    assert sorted(np.concatenate(found).tolist()) == list(range(50))
    for indices in found:
        assert len(indices) == 1 or lengths[indices].max() * len(indices) <= batch_tokens
        assert (np.diff(lengths[indices]) <= 0).all()
    assert batches([], batch_tokens) == []
