"""Slices and indices give the same elements, in the same order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_core.batch import ragged
from rl_core.batch.ragged import Segments, any_per_row

LENGTHS = st.lists(st.integers(0, 300), min_size=1, max_size=12)


def naive(offsets, which):
    return [p for i in which for p in range(offsets[i], offsets[i + 1])]


@given(LENGTHS, st.data(), st.sampled_from([0, 256, 10**6]))
def test_rows_are_taken_and_put_back_element_by_element_whichever_way_is_chosen(lengths, data, sliced_from):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    which = data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(0, len(lengths)))]
    expected = naive(offsets, which)
    column = np.arange(int(offsets[-1]) * 2, dtype=np.float32).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "SLICED_FROM", sliced_from)
        rows = Segments(offsets[which], np.array(lengths, np.int64)[which])
        assert rows.total == len(expected)
        assert rows.index.tolist() == expected
        taken = rows.take(column)
        assert taken.dtype == np.float32
        assert taken.tolist() == column[expected].tolist()
        assert not np.shares_memory(taken, column)
        empty = np.zeros_like(column)
        rows.put(empty, taken)
        assert empty[expected].tolist() == taken.tolist()
        assert np.count_nonzero(empty) == np.count_nonzero(taken)


def test_too_many_values_are_refused():
    rows = Segments(np.array([0]), np.array([100]))
    with pytest.raises(ValueError, match=r"^there are 101 values for rows of 100 elements$"):
        rows.put(np.zeros(200), np.ones(101))


@given(LENGTHS, st.integers(0, 2**32))
def test_a_row_has_a_flag_where_any_of_its_elements_has(lengths, seed):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flags = np.random.default_rng(seed).random(int(offsets[-1])) < 0.01
    expected = [bool(flags[a:b].any()) for a, b in pairwise(offsets)]
    assert any_per_row(flags, offsets).tolist() == expected
