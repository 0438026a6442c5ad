"""What neighbours have in common at their beginning."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rl_core.batch import SequenceBatch
from rl_torch.prefixes import SharedPrefixes


def prefixes(*rows: list[int]) -> tuple[list[int], list[int]]:
    found = SharedPrefixes.of(SequenceBatch.from_lists(list(rows)))
    return found.first.tolist(), found.shared.tolist()


def test_completions_share_their_prompt() -> None:
    one, other = [7, 8, 9], [3, 4, 5, 6]
    rows = [[*one, 1], [*one, 2, 2], [*one, 3], [*other, 1, 1], [*other, 2]]
    assert prefixes(*rows) == ([0, 0, 0, 3, 3], [0, 3, 3, 0, 4])


def test_what_completions_have_in_common_is_shared_as_well() -> None:
    assert prefixes([7, 8, 1, 5], [7, 8, 1, 6]) == ([0, 0], [0, 3])


def test_of_a_group_all_share_the_least() -> None:
    assert prefixes([1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 8, 8]) == ([0, 0, 0], [0, 4, 4])


def test_every_sequence_keeps_a_token_of_its_own() -> None:
    assert prefixes([1, 2, 3, 4], [1, 2, 3, 4]) == ([0, 0], [0, 3])
    assert prefixes([1, 2, 3], [1, 2, 3, 4]) == ([0, 0], [0, 2])


def test_an_instruction_before_all_prompts_does_not_end_the_sharing_of_the_prompts() -> None:
    instruction, one, other = [9] * 4, list(range(20, 30)), list(range(30, 40))
    rows = [[*instruction, *prompt, end] for prompt in (one, other) for end in (1, 2, 3)]
    assert prefixes(*rows) == ([0, 0, 0, 3, 3, 3], [0, 14, 14, 0, 14, 14])


def test_nothing_is_shared_that_saves_next_to_nothing() -> None:
    rows = [[1, 2, *range(10 * i, 10 * i + 30)] for i in range(3, 6)]
    assert prefixes(*rows) == ([0, 1, 2], [0, 0, 0])
    assert prefixes([5], [5]) == ([0, 1], [0, 0])
    assert prefixes() == ([], [])


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


@given(rows)
def test_what_is_shared_is_alike_and_belongs_to_neighbours(rows: list[list[int]]) -> None:
    batch = SequenceBatch.from_lists(rows)
    found = SharedPrefixes.of(batch)
    for i, (first, shared) in enumerate(zip(found.first.tolist(), found.shared.tolist(), strict=True)):
        assert 0 <= shared < len(rows[i])
        assert rows[i][:shared] == rows[first][:shared]
        assert found.first[first] == first
        assert (shared == 0) == (first == i)
        assert shared < len(rows[first])
    assert (np.diff(found.first) >= 0).all()
