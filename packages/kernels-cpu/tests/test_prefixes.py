"""Tokens behind the same beginning have one index."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rl_core.batch import SequenceBatch
from rl_kernels_cpu.prefixes import shared_indices


def indices(*rows: list[int]) -> list[list[int]]:
    batch = SequenceBatch.from_lists(list(rows))
    return [part.tolist() for part in np.split(shared_indices(batch), batch.offsets[1:-1])]


def test_completions_share_their_prompt() -> None:
    assert indices([7, 8, 9, 1], [7, 8, 9, 2, 2], [3, 4, 1], [7, 8, 9, 3], [3, 4, 2]) == [
        [4, 5, 6, 7],
        [4, 5, 6, 8, 9],
        [0, 1, 2],
        [4, 5, 6, 10],
        [0, 1, 3],
    ]


def test_what_completions_have_in_common_is_shared_as_well() -> None:
    assert indices([7, 1, 5], [7, 1, 6], [7, 2]) == [[0, 1, 2], [0, 1, 3], [0, 4]]


def test_an_instruction_before_all_prompts_is_shared_by_all_of_them() -> None:
    assert indices([9, 9, 1, 1], [9, 9, 1, 2], [9, 9, 3, 1]) == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 6]]


def test_equal_sequences_share_everything_and_a_sequence_may_begin_another() -> None:
    assert indices([1, 2, 3], [1, 2, 3]) == [[0, 1, 2], [0, 1, 2]]
    assert indices([1, 2, 3], [1, 2]) == [[0, 1, 2], [0, 1]]


def test_nothing_is_shared_that_saves_next_to_nothing() -> None:
    rows = [[1, *range(10 * i, 10 * i + 30)] for i in range(3, 5)]
    assert indices(*rows) == [list(range(31)), list(range(31, 62))]
    assert indices([5], [6]) == [[0], [1]]
    assert shared_indices(SequenceBatch.from_lists([])).tolist() == []


def test_larger_token_ids_are_in_order_too() -> None:
    assert indices([256, 1], [1, 256], [256, 2], [1, 2]) == [[3, 4], [0, 2], [3, 5], [0, 1]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_tokens_have_one_index_exactly_where_their_beginnings_are_equal(rows: list[list[int]]) -> None:
    found = [index for row in indices(*rows) for index in row]
    beginnings = [tuple(row[: i + 1]) for row in rows for i in range(len(row))]
    assert sorted(set(found)) == list(range(len(set(found))))
    if len(set(found)) < len(found):
        assert len(set(zip(found, beginnings, strict=True))) == len(set(found)) == len(set(beginnings))
    else:
        assert found == list(range(len(found)))
        assert len(found) - len(set(beginnings)) < max(1, 0.05 * len(found))
